"""The gateway's parts that need no server: keys, rates, places, bodies, examples, schemas."""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tristage.client import encode
from tristage.columns import DTYPES, Column, Signature
from tristage.errors import InputError
from tristage.gateway.admission import Admission, Place, Refusal
from tristage.gateway.asked import deadline_of, read_body
from tristage.gateway.example import example_row
from tristage.gateway.graph import edges, read_steps
from tristage.gateway.openapi import _prediction_schema, row_schema
from tristage.gateway.settings import Settings, read_keys
from tristage.gateway.triton import Served
from tristage.manifest import GOLDEN

KEY = "0123456789abcdef"


def test_keys_are_read() -> None:
    keys = read_keys(f"# ours\na:{KEY}1, b:{KEY}2\n\nc:{KEY}:3")
    assert list(keys) == ["a", "b", "c"]
    assert all(len(digest) == 32 for digest in keys.values())
    assert read_keys(" \n# none\n") == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a", "API key 1 is not name:key"),
        (f"a:{KEY} :{KEY}x", "API key 2 is not"),
        ("a:short", 'of "a" is shorter than 16'),
        (f"a:{KEY} a:{KEY}x", "comes twice"),
        (f"a:{KEY} b:{KEY}", "comes twice"),
        (f"a:{KEY}ü", "in ASCII"),
    ],
)
def test_bad_keys_are_refused_and_not_shown(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read_keys(text)
    assert KEY not in str(caught.value)


def test_a_caller_is_identified() -> None:
    door = Admission(Settings(keys=read_keys(f"a:{KEY}1 b:{KEY}2")))
    assert door.identify(f"Bearer {KEY}2") == "b"
    for wrong in ("", KEY, f"Basic {KEY}1", "Bearer b"):
        with pytest.raises(Refusal) as caught:
            door.identify(wrong)
        assert caught.value.status == 401
    assert Admission(Settings()).identify("") == ""


def test_a_rate_is_kept_and_callers_do_not_share_it() -> None:
    door = Admission(Settings(rate=2.0))
    for _ in range(2):
        door.spend("a", now=10.0)
    with pytest.raises(Refusal) as caught:
        door.spend("a", now=10.0)
    assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "1"})
    door.spend("b", now=10.0)
    door.spend("a", now=10.5)
    with pytest.raises(Refusal):
        door.spend("a", now=10.6)
    for _ in range(2):  # no more than a second's worth is saved up
        door.spend("a", now=99.0)
    with pytest.raises(Refusal):
        door.spend("a", now=99.0)


def test_places_are_bounded_and_given_back() -> None:
    door = Admission(Settings(max_in_flight=2))
    with door.slot():
        with pytest.raises(Refusal) as caught, door.slot(late=1):
            raise AssertionError
        with door.slot(), pytest.raises(Refusal), door.slot():
            raise AssertionError
        assert door.in_flight == 1
    assert door.in_flight == 0
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})


COLUMNS = tuple(
    Column(f"{dtype}{'?' if nullable else ''}{length or ''}", dtype, length, nullable=nullable)
    for dtype in DTYPES
    for nullable in (False, True)
    for length in (None, 2)
)
EVERY = Signature("every", 8, COLUMNS, (Column("y", "float32"),))


def test_an_example_made_up_is_a_good_row() -> None:
    row = example_row(EVERY, None)
    assert set(encode([row], EVERY)) == {column.name for column in COLUMNS}
    properties = row_schema(Served(EVERY, (), None, row))["properties"]
    assert list(properties) == [column.name for column in COLUMNS]
    assert properties["int8"]["minimum"] == -128
    least = properties["float32"]["exclusiveMaximum"]
    assert "float32" in encode([{**row, "float32": math.nextafter(least, 0)}], EVERY)
    with pytest.raises(InputError, match="too large"):
        encode([{**row, "float32": least}], EVERY)
    assert properties["uint64"]["maximum"] == 2**64 - 1
    assert properties["bool?"]["type"] == ["boolean", "integer", "null"]
    assert properties["string?2"]["type"] == ["array", "null"]
    assert properties["string?2"]["items"]["type"] == "string"


def test_a_list_of_answers_is_described() -> None:
    signature = Signature("s", 8, COLUMNS, (Column("ids", "int64", 3), Column("y", "float32")))
    properties = _prediction_schema(Served(signature, (), None, {}))["properties"]
    assert properties["y"]["type"] == ["number", "null"]
    assert (properties["ids"]["type"], properties["ids"]["minItems"], properties["ids"]["maxItems"]) == ("array", 3, 3)
    assert properties["ids"]["items"] == properties["y"]


def test_a_golden_example_is_one_that_json_can_say(tmp_path: Path) -> None:
    columns = (Column("x", "float32"), Column("age", "int32", nullable=True), Column("tokens", "int64", 2))
    rows = [
        {"x": math.nan, "age": 1.0, "tokens": [1]},
        {"x": math.inf, "age": 2.0, "tokens": []},
        {"x": 0.5, "age": math.nan, "tokens": [1, 2, 3]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / GOLDEN)
    signature = Signature("s", 8, columns, ())
    assert example_row(signature, tmp_path) == {"x": 0.5, "age": None, "tokens": [1, 2]}
    pq.write_table(pa.Table.from_pylist(rows[:2]), tmp_path / GOLDEN)
    assert example_row(signature, tmp_path)["x"] == 1.0
    (tmp_path / GOLDEN).write_bytes(b"PAR1")
    assert example_row(signature, tmp_path)["x"] == 1.0


def test_steps_are_put_in_order_whatever_the_configuration_s() -> None:
    config = {
        "name": "s",
        "input": [{"name": "x"}],
        "ensemble_scheduling": {
            "step": [
                {"model_name": "s_b", "input_map": {"in": "a"}, "output_map": {"out": "y"}},
                {"model_name": "s_a", "input_map": {"in": "x"}, "output_map": {"out": "a"}},
            ]
        },
    }
    steps = read_steps(config, {"s_a": "a"})
    assert [(step.model, step.name) for step in steps] == [("s_a", "a"), ("s_b", "s_b")]
    assert edges(steps, ("y",)) == [("inputs", "s_a"), ("s_a", "s_b"), ("s_b", "outputs")]
    config["input"] = []
    with pytest.raises(ValueError, match="wait for each other"):
        read_steps(config, {})


def scope_parts(*messages: dict[str, Any]) -> tuple[Any, Place]:
    waiting = iter(messages)

    async def receive() -> dict[str, Any]:
        for message in waiting:
            return {"type": "http.request", **message}
        await asyncio.sleep(30)  # a caller that sends no more
        raise AssertionError

    return receive, Admission(Settings()).slot()


def read(headers: dict[bytes, bytes], *messages: dict[str, Any], most: int = 10, seconds: float = 30.0) -> bytes:
    receive, place = scope_parts(*messages)

    async def whole() -> bytes:
        with place:
            return await read_body({"state": {"headers": headers}}, receive, time.monotonic() + seconds, place, most)

    return asyncio.run(whole())


def test_a_body_is_read_to_its_end() -> None:
    assert read({}, {}) == b""
    assert read({b"content-length": b"4"}, {"body": b"abcd"}) == b"abcd"
    parts: list[dict[str, Any]] = [{"body": b"ab", "more_body": True}, {"body": b"", "more_body": True}, {"body": b"c"}]
    assert read({b"transfer-encoding": b"chunked"}, *parts) == b"abc"
    assert read({b"content-length": b"10"}, {"body": b"x" * 10}) == b"x" * 10


@pytest.mark.parametrize(
    ("headers", "messages", "code"),
    [
        ({b"content-length": b"41"}, [], "size"),  # refused unread
        ({b"content-length": b"11"}, [{"body": b"x" * 11}], "size"),
        ({}, [{"body": b"x" * 6, "more_body": True}, {"body": b"x" * 6}], "size"),
        (
            {},
            [{"body": b"x" * 20, "more_body": True}, {"body": b"x" * 21, "more_body": True}],
            "size",
        ),  # not to its end
        ({}, [{"body": b"x", "more_body": True}, {"type": "http.disconnect"}], "gone"),
    ],
)
def test_a_body_that_is_too_large_or_ends_early(
    headers: dict[bytes, bytes], messages: list[dict[str, Any]], code: str
) -> None:
    with pytest.raises(Refusal) as caught:
        read(headers, *messages)
    assert caught.value.code == code


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    for sent in ([], [{"body": b"x", "more_body": True}]):
        with pytest.raises((asyncio.TimeoutError, TimeoutError)):
            read({b"content-length": b"4"}, *sent, seconds=0.05)


def test_a_body_is_held_while_it_is_there() -> None:
    door = Admission(Settings(max_body=10))
    receive, _ = scope_parts({"body": b"abc", "more_body": True}, {"body": b"def"})

    async def whole() -> None:
        with door.slot() as place:
            await read_body({"state": {"headers": {}}}, receive, time.monotonic() + 30, place, 10)
            assert (door.in_flight, door.held) == (1, 6)

    asyncio.run(whole())
    assert (door.in_flight, door.held) == (0, 0)


def test_a_caller_s_own_limit() -> None:
    settings = Settings(timeout=10.0)
    for headers, seconds in (
        ({}, 10.0),
        ({b"x-request-timeout-ms": b"500"}, 0.5),
        ({b"x-request-timeout-ms": b"99999"}, 10.0),
    ):
        now = time.monotonic()
        assert now + seconds <= deadline_of(headers, settings) <= time.monotonic() + seconds
    for wrong in (b"", b"0", b"-1", b"1.5", b"x", b"\xb2", b"1" * 10):
        with pytest.raises(Refusal) as caught:
            deadline_of({b"x-request-timeout-ms": wrong}, settings)
        assert caught.value.code == "timeout"
