"""Files of rows for the command line: read in parts, so that a large one never lies in memory, and written aside."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from tristage.columns import Column
from tristage.errors import InputError, TristageError

__all__ = ["Part", "Writer", "count_rows", "read_parts", "write_rows"]


@dataclass(frozen=True)
class Part:
    """Some rows of a file.

    Attributes:
        rows: a RecordBatch or a list of dicts.
        first_row: the number of the first of them, from 0.
        lines: the line each row stands in, from 1; None where rows are not lines.
    """

    rows: Any
    first_row: int
    lines: Sequence[int] | None = None


class Writer(Protocol):
    """Takes answers part by part."""

    def __call__(self, answers: Any) -> None:
        """Append a RecordBatch or a list of dicts."""
        ...


def read_parts(source: str, most: int) -> Iterator[Part]:
    """The rows of a .parquet or .jsonl file, or of "-", JSON lines on standard input, `most` at a time.

    Raises:
        InputError: there is no such file, its kind is not known, or something in it cannot be read.
    """
    if source == "-":
        yield from _read_lines(sys.stdin.buffer, "standard input", most)
        return
    kind = _kind(source, "read")
    try:
        if kind == "parquet":
            yield from _read_parquet(source, most)
        else:
            with Path(source).open("rb") as stream:
                yield from _read_lines(stream, source, most)
    except OSError as error:
        raise InputError(f"{source} cannot be read ({error.strerror or error}); name a file of rows") from error


def count_rows(source: str) -> int | None:
    """How many rows a file has, where it says so itself."""
    if source == "-" or _kind(source, "read") != "parquet":
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(source).num_rows)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{source} cannot be read as Parquet ({error}); name a file of rows") from error


@contextmanager
def write_rows(target: str, columns: Sequence[Column]) -> Iterator[Writer]:
    """Write answers to a .parquet or .jsonl file, or as JSON lines to "-", standard output.

    A file is written aside and takes its name at the end, so that a failure leaves what was there.

    Raises:
        InputError: the kind of file is not known.
        TristageError: it cannot be written.
    """
    if target == "-":
        yield lambda answers: _write_lines(sys.stdout, answers)
        sys.stdout.flush()
        return
    kind, final = _kind(target, "written"), Path(target)
    aside = final.with_name(f".{final.name}.{os.getpid()}.part")
    try:
        with _parquet_writer(aside, columns) if kind == "parquet" else _lines_writer(aside) as writer:
            yield writer
        aside.replace(final)
    except OSError as error:
        raise TristageError(
            f"{target} cannot be written ({error.strerror or error}); choose another place, or make room"
        ) from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def _kind(name: str, what: str) -> str:
    kind = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}.get(Path(name).suffix.lower())
    if kind is None:
        raise InputError(f'{name} cannot be {what}: rows are .parquet or .jsonl files, or "-" for JSON lines')
    return kind


def _read_parquet(source: str, most: int) -> Iterator[Part]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source) as file:
            first_row = 0
            for batch in file.iter_batches(batch_size=most):
                yield Part(batch, first_row)
                first_row += batch.num_rows
    except pa.ArrowException as error:
        raise InputError(f"{source} cannot be read as Parquet ({error}); name a file of rows") from error


def _read_lines(stream: IO[bytes], name: str, most: int) -> Iterator[Part]:
    rows: list[Any] = []
    lines: list[int] = []
    first_row = 0
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:  # not JSON, or not UTF-8
            raise InputError(
                f"{name}, line {number} is not JSON ({error}); each line is one object of column name -> value",
                row=first_row + len(rows),
            ) from error
        if not isinstance(row, dict):
            raise InputError(
                f"{name}, line {number} is not a JSON object; each line is one object of column name -> value",
                row=first_row + len(rows),
            )
        rows.append(row)
        lines.append(number)
        if len(rows) == most:
            yield Part(rows, first_row, lines)
            first_row, rows, lines = first_row + len(rows), [], []
    if rows:
        yield Part(rows, first_row, lines)


@contextmanager
def _lines_writer(path: Path) -> Iterator[Writer]:
    with path.open("w", encoding="utf-8") as stream:
        yield lambda answers: _write_lines(stream, answers)


def _write_lines(stream: IO[str], answers: Any) -> None:
    rows = answers if isinstance(answers, list) else answers.to_pylist()
    stream.writelines(json.dumps(_finite(row)) + "\n" for row in rows)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity; null says as much."""
    return {
        name: list(map(_number, value)) if isinstance(value, list) else _number(value) for name, value in row.items()
    }


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _parquet_writer(path: Path, columns: Sequence[Column]) -> Iterator[Writer]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"bool": "bool", "float32": "float", "float64": "double", "string": "string"}
    types = [pa.type_for_alias(kinds.get(column.wire_dtype, column.wire_dtype)) for column in columns]
    schema = pa.schema(
        [
            (column.name, its if column.length is None else pa.list_(its))
            for column, its in zip(columns, types, strict=True)
        ]
    )
    with pq.ParquetWriter(path, schema) as writer:

        def write(answers: Any) -> None:
            if isinstance(answers, list):
                writer.write_table(pa.Table.from_pylist(answers, schema))
            else:
                writer.write_table(pa.Table.from_batches([answers]).cast(schema))

        yield write
