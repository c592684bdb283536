"""LambdaOp: a function is called once with a column that records what is done to it.

What can be recorded is arithmetic, comparison, logic, casts, null tests and NumPy's element-wise functions. The dtype
of every result is asked of pandas, by doing the same to a series of two values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tristage.export.onnx_graph import GraphBuilder
from tristage.export.workflow.registry import Node, lowers
from tristage.export.workflow.values import NotCompilable, Value, materialise

__all__: list[str] = []

_UFUNCS = {
    np.absolute: "Abs",
    np.ceil: "Ceil",
    np.cos: "Cos",
    np.exp: "Exp",
    np.floor: "Floor",
    np.isnan: "IsNaN",
    np.log: "Log",
    np.logical_not: "Not",
    np.negative: "Neg",
    np.positive: "Identity",
    np.sign: "Sign",
    np.sin: "Sin",
    np.sqrt: "Sqrt",
    np.tan: "Tan",
    np.tanh: "Tanh",
}
_BINARY = {
    np.add: "Add",
    np.subtract: "Sub",
    np.multiply: "Mul",
    np.true_divide: "Div",
    np.greater: "Greater",
    np.greater_equal: "GreaterOrEqual",
    np.less: "Less",
    np.less_equal: "LessOrEqual",
    np.equal: "Equal",
}
_LOGIC = {np.logical_and: "And", np.logical_or: "Or", np.logical_xor: "Xor"}
# what & | ^ ~ are, on booleans
_BITWISE = {
    np.bitwise_and: np.logical_and,
    np.bitwise_or: np.logical_or,
    np.bitwise_xor: np.logical_xor,
    np.invert: np.logical_not,
}


@lowers("merlin.dag.ops.udf.UDF")
def lambda_op(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    """Trace the function over each selected column."""
    frame = _Frame(node, graph)
    made = {}
    for name in node.names:
        try:
            arguments = (frame[name], frame)[: node.op._param_count]
            result = node.op.f(*arguments)
        except NotCompilable as error:
            raise NotCompilable(f"LambdaOp on {name}: {error}") from error
        except Exception as error:
            raise NotCompilable(f"LambdaOp on {name} cannot be traced ({error})") from error
        if not isinstance(result, _Traced):
            raise NotCompilable(f"LambdaOp on {name} returns {type(result).__name__}, not a column")
        made[name] = Value(result.tensor, result.dtype)
    return made


class _Frame:
    """The data frame that a two-argument function gets: its columns, by name."""

    def __init__(self, node: Node, graph: GraphBuilder) -> None:
        self._node = node
        self._graph = graph

    def __getitem__(self, name: str) -> _Traced:
        value = self._node.columns.get(name)
        if value is None:
            raise NotCompilable(f"it reads column {name!r}, which is not among its dependencies")
        if value.length is not None or value.dtype == "string":
            raise NotCompilable(f"column {name!r} holds {'lists' if value.length else 'text'}; only numbers are traced")
        return _Traced(self._graph, materialise(self._graph, value), _series(value.dtype))


class _Traced:
    """A column that records. `witness` is a short pandas series that everything is done to as well, for its dtype."""

    __array_priority__ = 1000

    def __init__(self, graph: GraphBuilder, tensor: str, witness: Any) -> None:
        self._graph = graph
        self._witness = witness
        self.tensor = tensor

    @property
    def dtype(self) -> str:
        return str(self._witness.dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> _Traced:
        if method != "__call__" or options:
            raise NotCompilable(f"numpy.{ufunc.__name__} with {method} or options is not traced")
        if ufunc in (np.floor_divide, np.remainder):
            return self._whole_division(ufunc, *inputs)
        for item in inputs:
            if not isinstance(item, _Traced) and not np.isscalar(item):
                raise NotCompilable(f"it computes with a {type(item).__name__}; only columns and numbers are traced")
        witness = ufunc(*(item._witness if isinstance(item, _Traced) else item for item in inputs))
        if str(witness.dtype) == "bool":
            ufunc = _BITWISE.get(ufunc, ufunc)
        if ufunc in _UFUNCS:
            tensor = self._unary(_UFUNCS[ufunc], inputs[0], str(witness.dtype))
        elif ufunc is np.log1p:
            # in float32 the sum would lose what small values are made of
            plus_one = self._graph.add("Add", self._as(inputs[0], "float64"), self._graph.scalar(1, "float64"))
            tensor = self._graph.cast(self._graph.add("Log", plus_one), "float64", str(witness.dtype))
        elif ufunc in _BINARY:
            tensor = self._pair(_BINARY[ufunc], inputs, self._common(inputs, str(witness.dtype)))
        elif ufunc is np.not_equal:
            tensor = self._graph.add("Not", self._pair("Equal", inputs, self._common(inputs, "bool")))
        elif ufunc in _LOGIC:
            tensor = self._pair(_LOGIC[ufunc], inputs, "bool")
        elif ufunc in (np.maximum, np.minimum):
            tensor = self._pair("Max" if ufunc is np.maximum else "Min", inputs, str(witness.dtype))
        elif ufunc is np.power and str(witness.dtype).startswith("float"):
            tensor = self._pair("Pow", inputs, str(witness.dtype))
        else:
            raise NotCompilable(f"numpy.{ufunc.__name__} is not traced")
        return _Traced(self._graph, tensor, witness)

    def astype(self, dtype: Any, *_: Any, **__: Any) -> _Traced:
        name = np.dtype(dtype).name
        witness = self._witness.astype(name)
        return _Traced(self._graph, self._graph.cast(self.tensor, self.dtype, name), witness)

    def isna(self) -> _Traced:
        return _Traced(self._graph, self._graph.is_null(self.tensor, self.dtype), self._witness.isna())

    isnull = isna

    def notna(self) -> _Traced:
        return self.__array_ufunc__(np.logical_not, "__call__", self.isna())

    def fillna(self, fill: Any) -> _Traced:
        if not self.dtype.startswith("float"):
            return self
        # pandas widens float32 to hold a value that doesn't fit in it
        filled = self.astype("float64") if self.dtype == "float32" and np.float32(fill) != fill else self
        null = self._graph.is_null(self.tensor, self.dtype)
        tensor = self._graph.add("Where", null, self._graph.scalar(fill, filled.dtype), filled.tensor)
        return _Traced(self._graph, tensor, filled._witness)

    def __getattr__(self, name: str) -> Any:
        raise NotCompilable(f"it uses .{name}, which is not traced; use arithmetic, comparisons or NumPy functions")

    def __bool__(self) -> bool:
        raise NotCompilable("it decides by a column's values (if, and, or); use numpy or & | ~ instead")

    def _unary(self, op: str, item: Any, dtype: str) -> str:
        if op == "Sign" and not dtype.startswith("float"):
            # ONNX Runtime takes the sign of the lower 32 bits
            zero = self._as(0, dtype)
            signs = [self._graph.add(compare, self._as(item, dtype), zero) for compare in ("Greater", "Less")]
            return self._graph.add("Sub", *(self._graph.cast(sign, "bool", dtype) for sign in signs))
        source = dtype if op not in ("IsNaN", "Not") else ("float64" if op == "IsNaN" else "bool")
        return self._graph.add(op, self._as(item, source))

    def _pair(self, op: str, inputs: tuple[Any, ...], dtype: str) -> str:
        return self._graph.add(op, *(self._as(item, dtype) for item in inputs))

    def _as(self, item: Any, dtype: str) -> str:
        if isinstance(item, _Traced):
            return self._graph.cast(item.tensor, item.dtype, dtype)
        return self._graph.scalar(item, dtype)

    def _common(self, inputs: tuple[Any, ...], result: str) -> str:
        """The dtype an operation is done in: its result's, or of a comparison the one that both sides fit in."""
        if result != "bool":
            return result
        sides = [item._witness.to_numpy() if isinstance(item, _Traced) else item for item in inputs]
        common = np.result_type(*sides).name
        return "uint8" if common == "bool" else common

    def _whole_division(self, ufunc: Any, left: Any, right: Any) -> _Traced:
        witness = ufunc(*(item._witness if isinstance(item, _Traced) else item for item in (left, right)))
        dtype = str(witness.dtype)
        if not dtype.startswith("int") or isinstance(right, _Traced) or right == 0:
            raise NotCompilable("// and % are traced for whole numbers by a constant other than 0")
        rest = self._pair("Mod", (left, right), dtype)
        if ufunc is np.remainder:
            return _Traced(self._graph, rest, witness)
        whole = self._graph.add("Sub", self._as(left, dtype), rest)
        return _Traced(self._graph, self._graph.add("Div", whole, self._graph.scalar(right, dtype)), witness)


def _operator(ufunc: Any, swapped: bool) -> Callable[[_Traced, Any], _Traced]:
    def apply(self: _Traced, other: Any) -> _Traced:
        return self.__array_ufunc__(ufunc, "__call__", *((other, self) if swapped else (self, other)))

    return apply


for _name, _ufunc in {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "truediv": np.true_divide,
    "floordiv": np.floor_divide,
    "mod": np.remainder,
    "pow": np.power,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}.items():
    setattr(_Traced, f"__{_name}__", _operator(_ufunc, swapped=False))
    setattr(_Traced, f"__r{_name}__", _operator(_ufunc, swapped=True))
for _name, _ufunc in {
    "gt": np.greater,
    "ge": np.greater_equal,
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}.items():
    setattr(_Traced, f"__{_name}__", _operator(_ufunc, swapped=False))
for _name, _ufunc in {"pos": np.positive, "neg": np.negative, "abs": np.absolute, "invert": np.invert}.items():
    setattr(_Traced, f"__{_name}__", lambda self, ufunc=_ufunc: self.__array_ufunc__(ufunc, "__call__", self))


def _series(dtype: str) -> Any:
    import pandas as pd

    return pd.Series(np.array([1, 2]).astype(dtype))
