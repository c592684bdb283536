"""NVTabular workflows, compiled operator by operator into ONNX."""

from __future__ import annotations

from tristage.export.workflow.compiler import CompiledWorkflow, NoLowering, compile_workflow, raw_columns
from tristage.export.workflow.interpret import InterpretedWorkflow, interpret
from tristage.export.workflow.registry import Lowering, Node, lowers
from tristage.export.workflow.texts import split_text
from tristage.export.workflow.values import NotCompilable, NotServable, Value

__all__ = [
    "CompiledWorkflow",
    "InterpretedWorkflow",
    "Lowering",
    "NoLowering",
    "Node",
    "NotCompilable",
    "NotServable",
    "Value",
    "compile_workflow",
    "interpret",
    "lowers",
    "raw_columns",
    "split_text",
]
