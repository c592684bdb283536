"""Columns: what a row is made of, and how it travels to Triton.

A column is a scalar (one value a row) or a list with a declared maximum length and a pad value. On the wire every
scalar column is a tensor of shape [rows, 1] and every list column one of [rows, length], so that requests batch.
Triton has no null, so a null travels as NaN (numbers; a nullable integer column travels as float64, which is what
pandas makes of it) or as NULL_STRING (strings).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tristage.errors import RepositoryError

__all__ = ["DTYPES", "NULL_STRING", "SIGNATURE_PARAMETER", "Column", "Signature"]

NULL_STRING = "\x01"
SIGNATURE_PARAMETER = "tristage.signature"

# name of a dtype here -> (numpy's dtype, Triton's name in requests)
DTYPES: Mapping[str, tuple[str, str]] = {
    "bool": ("bool", "BOOL"),
    "int8": ("int8", "INT8"),
    "int16": ("int16", "INT16"),
    "int32": ("int32", "INT32"),
    "int64": ("int64", "INT64"),
    "uint8": ("uint8", "UINT8"),
    "uint16": ("uint16", "UINT16"),
    "uint32": ("uint32", "UINT32"),
    "uint64": ("uint64", "UINT64"),
    "float32": ("float32", "FP32"),
    "float64": ("float64", "FP64"),
    "string": ("object", "BYTES"),
}


@dataclass(frozen=True)
class Column:
    """One column of a row.

    Attributes:
        name: the column's name.
        dtype: one of DTYPES; of a list column, its elements'.
        length: None for a scalar; the maximum number of elements of a list.
        pad: what fills a list up to `length` (0, NaN or "" unless declared otherwise); None for a scalar, and for a
            list that is always full.
        nullable: whether a null may be sent.
    """

    name: str
    dtype: str
    length: int | None = None
    pad: int | float | str | None = None
    nullable: bool = False

    @property
    def wire_dtype(self) -> str:
        """The dtype the column travels in: float64 for a nullable integer or boolean, else its own."""
        if self.nullable and self.dtype not in ("string", "float32", "float64"):
            return "float64"
        return self.dtype

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """numpy's dtype on the wire; object for strings."""
        return np.dtype(DTYPES[self.wire_dtype][0])

    @property
    def triton_dtype(self) -> str:
        """Triton's name of the wire dtype, such as "FP32"."""
        return DTYPES[self.wire_dtype][1]

    @property
    def width(self) -> int:
        """Elements a row holds on the wire: 1 for a scalar, `length` for a list."""
        return 1 if self.length is None else self.length


@dataclass(frozen=True)
class Signature:
    """What a served stack takes and gives: travels inside the ensemble's configuration, so a client needs only a URL.

    Attributes:
        stack: the stack's name, which is the ensemble's model name.
        max_batch: rows that one request may hold.
        inputs: the columns of a request.
        outputs: the columns of an answer; a list's rows are all of its length, and it has no pad.
    """

    stack: str
    max_batch: int
    inputs: tuple[Column, ...]
    outputs: tuple[Column, ...]

    def to_json(self) -> str:
        """The signature as one line of JSON, the same bytes for the same signature."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Signature:
        """Read what `to_json` wrote.

        Raises:
            RepositoryError: the text is not a signature.
        """
        try:
            raw = json.loads(text)
            columns = {side: tuple(Column(**column) for column in raw[side]) for side in ("inputs", "outputs")}
            return cls(stack=raw["stack"], max_batch=int(raw["max_batch"]), **columns)
        except (ValueError, KeyError, TypeError) as error:
            raise RepositoryError(
                f"the ensemble's signature cannot be read ({error}); export the stack again with this tristage"
            ) from error
