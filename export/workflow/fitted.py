"""Tables that NVTabular fitted, read a chunk of rows at a time, and their keys as whole numbers of 64 bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.columns import NULL_STRING
from tristage.errors import ArtifactError
from tristage.export.workflow.values import NotCompilable
from tristage.fingerprint import fingerprints

__all__ = ["CHUNK", "EXACT", "NO_KEY", "NULL_KEY", "NULL_TEXT_KEY", "FittedTable", "frame_table", "read_table"]

CHUNK = 1 << 17  # rows that are in memory at once
# what nulls and fractions of a numeric key become; ids are never these
NULL_KEY = int(np.iinfo(np.int64).min)
NO_KEY = NULL_KEY + 1
NULL_TEXT_KEY = int(fingerprints([NULL_STRING])[0])
EXACT = 2.0**62  # below it a float's whole number is an int64's


@dataclass(frozen=True)
class FittedTable:
    """A table of keys and what was fitted for them.

    Attributes:
        parts: Parquet files, or buffers that hold them, in order.
        schema: their pyarrow.Schema.
        rows: how many rows they have.
        start: the label of its first row, the others' follow; None where rows have labels of their own.
    """

    parts: tuple[Any, ...]
    schema: Any
    rows: int
    start: int | None

    @property
    def names(self) -> list[str]:
        """Its columns, in order, without pandas' index."""
        index = (self.schema.pandas_metadata or {}).get("index_columns", [])
        return [name for name in self.schema.names if name not in index]

    def dtype(self, name: str) -> np.dtype[Any]:
        """The numpy dtype of a column; object for text."""
        return np.dtype(self.schema.field(name).type.to_pandas_dtype())

    def labels(self) -> NDArray[np.int64]:
        """The label of every row, [rows]: pandas' index."""
        if self.start is not None:
            return np.arange(self.start, self.start + self.rows, dtype=np.int64)
        (name,) = self.schema.pandas_metadata["index_columns"]
        return np.concatenate([np.empty(0, np.int64), *(chunk[name] for _, chunk in self.chunks([name]))])

    def chunks(self, names: Sequence[str]) -> Iterator[tuple[slice, dict[str, NDArray[Any]]]]:
        """Columns as arrays, nulls as NaN, chunk by chunk, each with the rows it holds."""
        for place, batch in self._batches(names):
            yield place, {name: batch[name].to_numpy(zero_copy_only=False) for name in names}

    def keys(self, name: str, texts: dict[int, str] | None) -> Iterator[tuple[slice, NDArray[np.int64]]]:
        """A key column as int64, chunk by chunk: whole numbers as they are, text as fingerprints.

        Args:
            name: the column.
            texts: takes the text of every fingerprint; None where the column that is looked up holds numbers.

        Raises:
            NotCompilable: a key is of a type that the column never holds, or no whole number.
            ArtifactError: two texts have one fingerprint.
        """
        for place, batch in self._batches([name]):
            yield place, _number_keys(batch[name]) if texts is None else _text_keys(batch[name], texts)

    def _batches(self, names: Sequence[str]) -> Iterator[tuple[slice, Any]]:
        start = 0
        for part in self.parts:
            for batch in _open(part).iter_batches(CHUNK, columns=list(names), use_threads=False):
                yield slice(start, start + batch.num_rows), batch
                start += batch.num_rows


def read_table(path: str, what: str) -> FittedTable:
    """Open a table that a fitted operator left in a file or folder of Parquet.

    Raises:
        ArtifactError: it is gone.
    """
    found = Path(path)
    parts = sorted(found.glob("[!_.]*.parquet")) if found.is_dir() else [found] if found.is_file() else []
    if not parts:
        raise ArtifactError(f"{what}: its fitted table {path} is gone; save the workflow again", path=found)
    return _table(parts)


def frame_table(frame: Any, what: str) -> FittedTable:
    """A pandas.DataFrame as a fitted table.

    Raises:
        NotCompilable: a column holds objects of several types.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    try:
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), buffer)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise NotCompilable(f"{what}: its table holds objects that are neither numbers nor texts ({error})") from error
    return _table([buffer.getvalue()])


def _table(parts: Sequence[Any]) -> FittedTable:
    opened = [_open(part) for part in parts]
    schema = opened[0].schema_arrow
    start: int | None = 0
    for entry in (schema.pandas_metadata or {}).get("index_columns", []):
        start = entry["start"] if isinstance(entry, dict) else None
    return FittedTable(tuple(parts), schema, sum(part.metadata.num_rows for part in opened), start)


def _open(part: Any) -> Any:
    """A part, of which no more is read at once than is asked for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.ParquetFile(pa.BufferReader(part) if isinstance(part, pa.Buffer) else part, buffer_size=1 << 20)


def _text_keys(array: Any, texts: dict[int, str]) -> NDArray[np.int64]:
    import pyarrow as pa

    if pa.types.is_null(array.type):
        return np.full(len(array), NULL_TEXT_KEY, np.int64)
    encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    if not (pa.types.is_string(encoded.type.value_type) or pa.types.is_large_string(encoded.type.value_type)):
        raise NotCompilable("a text column whose fitted categories are not texts")
    distinct = encoded.dictionary.to_pylist()
    known = fingerprints(distinct)
    for number, text in zip(known.tolist(), distinct, strict=True):
        if texts.setdefault(number, text) != text:
            raise ArtifactError(f"the keys {texts[number]!r} and {text!r} have one fingerprint; rename one of them")
    indices = encoded.indices.fill_null(len(known)).to_numpy(zero_copy_only=False)
    return np.asarray(np.append(known, NULL_TEXT_KEY)[indices], np.int64)


def _number_keys(array: Any) -> NDArray[np.int64]:
    import pyarrow as pa

    if pa.types.is_null(array.type):
        return np.full(len(array), NULL_KEY, np.int64)
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)):
        example = next((key for key in array.to_pylist() if key is not None), None)
        raise NotCompilable(f"category {example!r} of a numeric column is not a whole number of 64 bits")
    null = np.asarray(array.is_null(nan_is_null=True))
    filled = array.fill_null(False if pa.types.is_boolean(array.type) else 0).to_numpy(zero_copy_only=False)
    if filled.dtype.kind == "f":
        filled = np.where(null, 0, filled)
        wrong = (filled != np.floor(filled)) | ~(np.abs(filled) < 2.0**63)
    else:
        wrong = filled > np.iinfo(np.int64).max if filled.dtype == np.uint64 else np.zeros(len(filled), bool)
    if wrong.any():
        example = filled[wrong.argmax()].item()
        raise NotCompilable(f"category {example!r} of a numeric column is not a whole number of 64 bits")
    return np.asarray(np.where(null, NULL_KEY, filled.astype(np.int64)), np.int64)
