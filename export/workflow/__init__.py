"""NVTabular workflows, compiled operator by operator into ONNX."""

from __future__ import annotations

from tristage.export.workflow.compiler import CompiledWorkflow, compile_workflow, raw_columns
from tristage.export.workflow.registry import Lowering, Node, lowers
from tristage.export.workflow.texts import split_text
from tristage.export.workflow.values import NotCompilable, Value

__all__ = [
    "CompiledWorkflow",
    "Lowering",
    "Node",
    "NotCompilable",
    "Value",
    "compile_workflow",
    "lowers",
    "raw_columns",
    "split_text",
]
