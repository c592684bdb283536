"""Neural nets: each framework's own exporter turns them into ONNX."""

from __future__ import annotations

from tristage.export.net.model import Net, NetConverter, NetInput
from tristage.export.net.read import NETS, read_net

__all__ = ["NETS", "Net", "NetConverter", "NetInput", "read_net"]
