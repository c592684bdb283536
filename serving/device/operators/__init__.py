"""ONNX operators on a torch device."""

from tristage.serving.device.operators import arithmetic, look_ups, nets, shapes
from tristage.serving.device.operators.registry import OPERATORS, SIZES, Faults, Node, Unsupported, within

__all__ = ["OPERATORS", "SIZES", "Faults", "Node", "Unsupported", "within"]

_REGISTERED = (arithmetic, look_ups, nets, shapes)
