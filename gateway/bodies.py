"""Bodies: rows as JSON, Arrow or Parquet in, and predictions out in the same kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from pydantic_core import from_json, to_json

from tristage.errors import InputError

__all__ = ["JSON", "KINDS", "Kind", "Limits", "TooLarge", "find_kind", "parse_json"]


class TooLarge(InputError):
    """A body holds more than the gateway takes."""


@dataclass(frozen=True)
class Limits:
    """What one body may hold: rows, and bytes once decompressed."""

    rows: int
    memory: int

    def check(self, rows: int, memory: int = 0) -> None:
        """Do nothing where both are within the limits.

        Raises:
            TooLarge: one is not.
        """
        if rows > self.rows:
            raise TooLarge(f"more than {self.rows} rows in one request; send them in several")
        if memory > self.memory:
            raise TooLarge(f"the rows take more than {self.memory} bytes in memory; send them in several requests")


@dataclass(frozen=True)
class Kind:
    """One kind of body.

    Attributes:
        media_type: as Content-Type says it.
        read: a body and its limits -> rows, as `tristage.client.encode` takes them.
        write: predictions in the shape of the rows -> a body.
    """

    media_type: str
    read: Callable[[bytes, Limits], Any]
    write: Callable[[Any], bytes]


def find_kind(content_type: str) -> Kind | None:
    """The kind that a Content-Type names; JSON where there is none."""
    return KINDS.get(content_type.partition(";")[0].strip().lower() or JSON.media_type)


def parse_json(body: bytes) -> Any:
    """A JSON document.

    Raises:
        InputError: it is none.
    """
    try:
        return from_json(body, allow_inf_nan=True)
    except ValueError as error:
        raise InputError(f'the body is not JSON ({error}); send {{"rows": [{{...}}]}}') from error


def _read_json(body: bytes, limits: Limits) -> Any:
    document = parse_json(body)
    if not isinstance(document, dict) or document.keys() != {"rows"} or not isinstance(document["rows"], list):
        raise InputError('the body must be one JSON object that holds a list, {"rows": [{...}]}, and nothing else')
    limits.check(len(document["rows"]))
    return document["rows"]


def _write_json(predictions: Any) -> bytes:
    return to_json({"predictions": predictions}, inf_nan_mode="null")


def _read_stream(body: bytes, limits: Limits) -> Any:
    import pyarrow as pa

    with _readable("an Arrow stream"), pa.ipc.open_stream(body) as reader:
        return _gather(reader, reader.schema, limits)


def _read_file(body: bytes, limits: Limits) -> Any:
    import pyarrow as pa

    with _readable("an Arrow file"), pa.ipc.open_file(body) as reader:
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        return _gather(batches, reader.schema, limits)


def _read_parquet(body: bytes, limits: Limits) -> Any:
    import pyarrow.parquet as pq

    with _readable("a Parquet file"), pq.ParquetFile(BytesIO(body)) as file:
        groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
        limits.check(file.metadata.num_rows, sum(group.total_byte_size for group in groups))
        return _gather(file.iter_batches(batch_size=256), file.schema_arrow, limits)


def _gather(batches: Any, schema: Any, limits: Limits) -> Any:
    """Batches as one Table; stops at the first that is too much."""
    import pyarrow as pa

    _ = schema.names  # which may not be UTF-8
    kept, rows, memory = [], 0, 0
    for batch in batches:
        batch.validate(full=True)  # offsets of a forged batch may point anywhere
        rows, memory = rows + batch.num_rows, memory + batch.nbytes
        limits.check(rows, memory)
        kept.append(batch)
    return pa.Table.from_batches(kept, schema)


class _readable:  # noqa: N801  reads as a phrase
    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        import pyarrow as pa

        if isinstance(error, (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)):
            raise InputError(f"the body cannot be read as {self._what} ({error})") from error


def _write_stream(predictions: Any) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, predictions.schema) as writer:
        writer.write_table(predictions)
    return bytes(sink.getvalue())


def _write_file(predictions: Any) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, predictions.schema) as writer:
        writer.write_table(predictions)
    return bytes(sink.getvalue())


def _write_parquet(predictions: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(predictions, sink)
    return bytes(sink.getvalue())


JSON = Kind("application/json", _read_json, _write_json)
KINDS = {
    kind.media_type: kind
    for kind in (
        JSON,
        Kind("application/vnd.apache.arrow.stream", _read_stream, _write_stream),
        Kind("application/vnd.apache.arrow.file", _read_file, _write_file),
        Kind("application/vnd.apache.parquet", _read_parquet, _write_parquet),
    )
}
