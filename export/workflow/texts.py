"""Texts that hold lists: taken apart at a separator. No operator of NVTabular does so; lowerings of your own may."""

from __future__ import annotations

import numpy as np

from tristage.export.onnx_graph import GraphBuilder, onnx_type
from tristage.export.workflow.values import NotCompilable, Value, materialise

__all__ = ["split_text"]

_DIGITS = 18  # as many as every int64 can have


def split_text(
    graph: GraphBuilder, value: Value, separator: str, max_length: int, *, what: str, dtype: str = "string"
) -> Value:
    """A column of text as a list column: the first `max_length` pieces between separators.

    A null and an empty text hold no piece; elsewhere an empty piece is a piece, as for Python's `str.split`. Whole
    numbers are an optional minus and 1 to 18 ASCII digits, with nothing around them. A text that holds anything else,
    in any of its pieces, ends the evaluation: its request is answered with an error that names `what`.

    Args:
        graph: the graph.
        value: the column; a scalar of text.
        separator: one or more characters.
        max_length: length of the list column, 1 or more.
        what: what the text is called in errors, such as its column's name.
        dtype: "string", or "int64" for whole numbers.

    Raises:
        NotCompilable: the column is a list, or does not hold text.
    """
    if value.length is not None or value.dtype != "string":
        holds = value.dtype if value.length is None else f"lists of {value.dtype}"
        raise NotCompilable(f"{what} is split as text, and holds {holds}")
    text = materialise(graph, value)
    text = graph.add("Where", graph.is_null(text, "string"), graph.scalar("", "string"), text)
    if dtype == "int64":
        number, between = f"-?[0-9]{{1,{_DIGITS}}}", "".join(f"\\x{{{ord(character):x}}}" for character in separator)
        fits = graph.add("RegexFullMatch", text, pattern=f"({number}({between}{number})*)?")
        # the cast would take "12abc" for 12, and " 1.5" for 1
        text = graph.add("Where", fits, text, graph.scalar("not a number", "string"))
    # a row of separators, taken off again, gives every batch the same width, and maxsplit lets no text widen it
    ruler = graph.constant(np.array([[separator * max_length]], object))
    pieces, count = graph.add_many(
        "StringSplit", graph.add("Concat", text, ruler, axis=0), outputs=2, delimiter=separator, maxsplit=max_length
    )
    start, end = (graph.constant(np.array(bounds, np.int64)) for bounds in ([0, 0, 0], [-1, 1, max_length]))
    # its length cannot be told from a split, and is said
    shape = graph.constant(np.array([-1, max_length], np.int64))
    pieces = graph.add("Reshape", graph.add("Slice", pieces, start, end), shape)
    count = graph.add("Slice", count, *(graph.constant(np.array([bound], np.int64)) for bound in (0, -1)))
    valid = graph.add("Less", graph.constant(np.arange(max_length, dtype=np.int64)[None, :]), count)
    if dtype == "int64":
        digits = graph.add("Where", valid, pieces, graph.scalar("0", "string"))
        wanted = f"{what} must hold whole numbers of at most {_DIGITS} digits, separated by {separator!r}"
        pieces = graph.add("Cast", digits, to=onnx_type("int64"), name=wanted)
    return Value(pieces, dtype, length=max_length, valid=valid, pad=0 if dtype == "int64" else "", width=max_length)
