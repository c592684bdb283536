"""The client against a real Triton that serves a small hand-written stack."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import signal
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from tristage.client import AsyncClient, Client, ListTruncated, cli, connect, connect_async, encode, verify
from tristage.columns import NULL_STRING, SIGNATURE_PARAMETER, Column, Signature
from tristage.errors import InferenceFailed, InputError, ParityError, RepositoryError, ServerError, ServerUnavailable
from tristage.manifest import GOLDEN, Manifest, checksums, write_manifest
from tristage.serving import serve
from tristage.serving.triton import ADMIN_HEADER

SIGNATURE = Signature(
    "tiny",
    64,
    (
        Column("amount", "float32"),
        Column("age", "int32", nullable=True),
        Column("word", "string"),
        Column("nick", "string", nullable=True),
        Column("tokens", "int64", length=4, pad=0),
        Column("tags", "string", length=2, pad=""),
    ),
    (Column("sum", "float32"), Column("score", "float64")),
)
MODEL = f"""
import time
import numpy as np
import triton_python_backend_utils as pb_utils

letters = np.frompyfunc(lambda text: -1 if text == {NULL_STRING!r}.encode() else len(text.decode()), 1, 1)

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = lambda name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            word = x("word")
            if word[0, 0] == b"sleep":
                time.sleep(1.5)
            if word[0, 0] == b"nap":
                time.sleep(0.1)
            if word[0, 0] == b"fail":
                answers.append(pb_utils.InferenceResponse([], pb_utils.TritonError("the model is unwell")))
                continue
            score = np.nan_to_num(x("age"), nan=-1000.0) + 10.0 * letters(x("nick")).astype(np.float64)
            score += x("tokens").sum(axis=1, keepdims=True)
            score += 0.5 * letters(x("tags")).astype(np.float64).sum(axis=1, keepdims=True)
            total = x("amount") + letters(word).astype(np.float32)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("sum", total), pb_utils.Tensor("score", score)]))
        return answers
"""


def answer(row):
    """What the model above makes of one row."""
    score = (-1000.0 if row["age"] is None else row["age"]) + 10.0 * (-1 if row["nick"] is None else len(row["nick"]))
    score += sum(row["tokens"][:4]) + 0.5 * sum(map(len, row["tags"][:2]))
    return {"sum": float(np.float32(row["amount"] + len(row["word"]))), "score": score}


def some_rows(count):
    return [
        {
            "amount": n + 0.25,
            "age": None if n % 3 == 0 else n,
            "word": "wörd" * (n % 4),
            "nick": None if n % 5 == 0 else "n" * (n % 7),
            "tokens": list(range(n % 5)),
            "tags": ["tag"] * (n % 3),
        }
        for n in range(count)
    ]


def tensors(kind, columns):
    return "".join(
        f'{kind} {{ name: "{column.name}" dims: [ {column.width} ] '
        f"data_type: TYPE_{column.triton_dtype.replace('BYTES', 'STRING')} }}\n"
        for column in columns
    )


def write_repository(root):
    io = tensors("input", SIGNATURE.inputs) + tensors("output", SIGNATURE.outputs)
    maps = "".join(
        f'{kind}_map {{ key: "{column.name}" value: "{column.name}" }}\n'
        for kind, columns in (("input", SIGNATURE.inputs), ("output", SIGNATURE.outputs))
        for column in columns
    )
    parameter = f'key: "{SIGNATURE_PARAMETER}" value {{ string_value: {json.dumps(SIGNATURE.to_json())} }}'
    for model in ("tiny", "tiny_step"):
        (root / model / "1").mkdir(parents=True)
    (root / "tiny" / "1" / ".keep").touch()
    (root / "tiny_step" / "1" / "model.py").write_text(MODEL)
    (root / "tiny_step" / "config.pbtxt").write_text(f'backend: "python"\nmax_batch_size: 64\n{io}')
    (root / "tiny" / "config.pbtxt").write_text(
        f'platform: "ensemble"\nmax_batch_size: 64\n{io}parameters {{ {parameter} }}\n'
        f'ensemble_scheduling {{ step {{ model_name: "tiny_step" model_version: -1\n{maps} }} }}\n'
    )
    write_golden(root, some_rows(100))
    write_manifest(root, Manifest("tiny", "pip-cpu", "ensemble", SIGNATURE, {}, {}, checksums(root)))
    return root


def write_golden(root, rows, **changed):
    answers = [{**answer(row), **(changed if n == 0 else {})} for n, row in enumerate(rows)]
    table = pa.Table.from_pylist(rows)
    for name, kind in (("sum", pa.float32()), ("score", pa.float64())):
        table = table.append_column(f"expected.{name}", pa.array([row[name] for row in answers], kind))
    pq.write_table(table, root / GOLDEN)


def start(root, **ports):
    return serve(root, **{"http_port": 0, "grpc_port": 0, "metrics_port": 0, **ports})


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return write_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def served(repository):
    with start(repository) as server:
        yield server


@pytest.fixture(params=["http", "grpc"])
def url(request, served):
    return getattr(served, f"{request.param}_url")


@pytest.fixture
def client(url):
    with Client(url) as client:
        yield client


def patiently(ask, *arguments):
    """gRPC may believe for another second that nobody is there."""
    deadline = time.monotonic() + 5
    while True:
        try:
            return ask(*arguments)
        except ServerUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def requests_so_far(url):
    """Triton counts a request a moment after it has answered it: once the count stays, none is under way."""
    with closing(connect(url)) as transport:
        counts = []
        while len(counts) < 4 or len(set(counts[-4:])) > 1:
            (entry,) = transport.statistics("tiny", 10.0)["model_stats"]
            counts.append(entry["inference_stats"]["success"]["count"])
            time.sleep(0.05)
        return counts[-1]


# ----------------------------------------------------------------------------------------------------- connections


def test_both_protocols_say_the_same(served):
    with closing(connect(served.http_url)) as http, closing(connect(served.grpc_url)) as grpc:
        for transport in (http, grpc):
            assert transport.ready("tiny", 10.0) is True
            assert transport.ready("", 10.0) is True
            assert transport.ready("nobody", 10.0) is False
            assert transport.models(10.0) == ["tiny", "tiny_step"]
        ours, theirs = http.config("tiny", 10.0), grpc.config("tiny", 10.0)
        # a newer protobuf has fields that this server does not know, at their defaults
        theirs["ensemble_scheduling"].pop("max_inflight_requests", None)
        assert ours == theirs
        requests_so_far(served.http_url)  # until none is under way
        for model in ("tiny", ""):
            ours, theirs = http.statistics(model, 10.0), grpc.statistics(model, 10.0)
            assert ours == theirs
            assert all(type(entry["inference_count"]) is int for entry in ours["model_stats"])


def test_the_asyncio_connection_says_the_same(url):
    async def main():
        transport = connect_async(url)
        try:
            assert await transport.ready("tiny", 10.0) is True
            assert await transport.ready("nobody", 10.0) is False
            got = [await transport.models(10.0), await transport.config("tiny", 10.0)]
            got.append(await transport.statistics("", 10.0))
            with pytest.raises(InferenceFailed, match='configuration of "nobody"'):
                await transport.config("nobody", 10.0)
            return got
        finally:
            await transport.close()

    requests_so_far(url)  # until none is under way
    got = asyncio.run(main())
    with closing(connect(url)) as transport:
        assert got == [transport.models(10.0), transport.config("tiny", 10.0), transport.statistics("", 10.0)]


def test_what_the_server_refuses(url):
    good = encode(some_rows(2), SIGNATURE)
    with closing(connect(url)) as transport:
        for model, inputs, outputs, says in (
            ("nobody", good, ["sum"], 'request to "nobody".*unknown model'),
            ("tiny", {"amount": good["amount"]}, ["sum"], "expected 6 inputs but got 1"),
            ("tiny", {**good, "amount": good["age"]}, ["sum"], "amount"),
            ("tiny", good, ["nothing"], "unexpected inference output 'nothing'"),
            ("tiny", encode([{**some_rows(1)[0], "word": "fail"}], SIGNATURE), ["sum"], "the model is unwell"),
            ("tiny", encode(some_rows(65), SIGNATURE), ["sum"], "batch-size must be <= 64"),
        ):
            with pytest.raises(InferenceFailed, match=says) as caught:
                transport.infer(model, inputs, outputs, 10.0)
            assert caught.value.status
        assert transport.infer("tiny", good, ["score"], 10.0)["score"].shape == (2, 1)


# --------------------------------------------------------------------------------------------------------- predict


def test_the_signature_comes_from_the_server(client):
    assert client.signature == SIGNATURE


def test_dicts(client):
    rows = some_rows(20)
    assert client.predict(rows) == [answer(row) for row in rows]
    assert client.predict(rows[:1]) == [answer(rows[0])]


def test_frames(client):
    rows = some_rows(20)
    want = pd.DataFrame([answer(row) for row in rows])
    frame = pd.DataFrame(rows, index=range(100, 120))
    got = client.predict(frame)
    pd.testing.assert_frame_equal(got, want.set_index(frame.index), check_dtype=False)
    table = pa.Table.from_pylist(rows)
    assert client.predict(table).to_pylist() == want.to_dict("records")
    assert isinstance(client.predict(table.to_batches()[0]), pa.RecordBatch)


def test_more_rows_than_one_request_holds_are_split(client):
    rows = some_rows(150)
    client.signature  # noqa: B018 - asked for before counting
    before = requests_so_far(client.url)
    assert client.predict(rows) == [answer(row) for row in rows]
    assert requests_so_far(client.url) == before + 3
    assert len(client.predict(rows[:64])) == 64
    assert requests_so_far(client.url) == before + 4


def test_asyncio(url):
    rows = some_rows(300)

    async def main():
        async with AsyncClient(url, concurrency=2) as client:
            assert await client.signature() == SIGNATURE
            whole = await client.predict(rows)
            parts = await asyncio.gather(*(client.predict(rows[n : n + 7]) for n in range(0, 280, 7)))
            framed = await client.predict(pd.DataFrame(rows[:3]))
            with pytest.raises(InputError, match="no rows"):
                await client.predict([])
            with pytest.raises(InferenceFailed, match="unwell"):
                await client.predict([*rows, {**rows[0], "word": "fail"}][-65:] + [{**rows[0], "word": "fail"}])
            assert await client.predict(rows[:2]) == whole[:2]
            return whole, parts, framed

    whole, parts, framed = asyncio.run(main())
    assert whole == [answer(row) for row in rows]
    assert [row for part in parts for row in part] == whole[:280]
    assert framed.to_dict("records") == whole[:3]


def test_threads_may_share_a_client(client):
    rows = some_rows(40)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: client.predict(rows[n : n + 3]), range(37)))
    assert answers == [[answer(row) for row in rows[n : n + 3]] for n in range(37)]


def test_a_stack_is_named_or_found(url):
    with Client(url, stack="tiny") as client:
        assert client.signature == SIGNATURE
    with Client(url, stack="nobody") as client, pytest.raises(ServerError, match='no "nobody"; it serves "tiny"'):
        client.predict(some_rows(1))
    with Client(url, stack="tiny_step") as client, pytest.raises(ServerError, match="was not exported by tristage"):
        client.predict(some_rows(1))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"word": None}, 'column "word", row 1: a null'),
        ({"age": "old"}, 'column "age", row 1: expected a whole number'),
        ({"amount": [1.0]}, 'column "amount", row 1: expected one float32'),
        ({"tokens": 5}, 'column "tokens", row 1: expected a list'),
        ({"tokens": [1, None]}, 'column "tokens", row 1: a null inside a list'),
        ({"colour": "red"}, 'column "colour" is unknown to the stack in row 1'),
    ],
)
def test_bad_rows_are_refused_before_anything_is_sent(client, change, says):
    rows = some_rows(2)
    before = client.predict(rows) and requests_so_far(client.url)
    with pytest.raises(InputError, match=says):
        client.predict([rows[0], {**rows[1], **change}])
    with pytest.raises(InputError, match='column "amount" is missing'):
        client.predict([{name: value for name, value in row.items() if name != "amount"} for row in rows])
    with pytest.raises(InputError, match="no rows"):
        client.predict([])
    assert requests_so_far(client.url) == before


def test_odd_rows_that_are_good(client):
    row = some_rows(5)[4]
    odd = {**row, "amount": math.nan, "age": None, "nick": None, "word": "never seen in training " * 50}
    got = client.predict([odd])
    assert math.isnan(got[0]["sum"])
    assert got[0]["score"] == answer(odd)["score"]
    assert client.predict([{**row, "colour": "red"}], unknown="ignore") == [answer(row)]
    with pytest.warns(ListTruncated, match='column "tokens": the lists of 1 row hold more than 4'):
        assert client.predict([{**row, "tokens": [1, 2, 3, 4, 500]}]) == [answer({**row, "tokens": [1, 2, 3, 4]})]


# ------------------------------------------------------------------------------------------------- servers that go


def test_too_late_is_said_and_the_next_answer_is_its_own(url):
    rows = some_rows(3)
    with Client(url) as client:
        assert client.predict(rows) == [answer(row) for row in rows]
        client.timeout = 0.4
        with pytest.raises(ServerUnavailable, match="did not answer within 0.4 s"):
            client.predict([{**rows[0], "word": "sleep"}])
        client.timeout = 30.0
        assert client.predict(rows[1:]) == [answer(row) for row in rows[1:]]


LATE, LIMIT = 64, 0.05  # calls whose time is up, and after how many seconds


def log_verbosely(url, key):
    """Triton then logs every step of a gRPC call, and its cancellation."""
    body = json.dumps({"log_verbose_level": 1}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{url}/v2/logging", body, {ADMIN_HEADER: key}), timeout=10).read()


def ask_too_late_in_threads(url, nap):
    with Client(url) as client:
        client.signature  # noqa: B018 - asked for while there is time
        client.timeout = LIMIT

        def ask(_):
            began = time.monotonic()
            with pytest.raises(ServerUnavailable, match="did not answer within 0.05 s"):
                client.predict([nap])
            return time.monotonic() - began

        with ThreadPoolExecutor(8) as pool:
            took = list(pool.map(ask, range(LATE)))
        closing_began = time.monotonic()
    return took, time.monotonic() - closing_began


async def ask_too_late_at_once(url, nap):
    async with AsyncClient(url, concurrency=8) as client:
        await client.signature()
        client.timeout = LIMIT

        async def ask():
            began = time.monotonic()
            with pytest.raises(ServerUnavailable, match="did not answer within 0.05 s"):
                await client.predict([nap])
            return time.monotonic() - began

        took = []
        for _ in range(LATE // 8):
            took += await asyncio.gather(*(ask() for _ in range(8)))
        closing_began = time.monotonic()
    return took, time.monotonic() - closing_began


@pytest.mark.parametrize("how", ["threads", "asyncio"])
def test_deadlines_cancel_nothing_in_the_server(repository, how):
    row, lines = some_rows(1)[0], []
    with start(repository, log=lines.append, admin_key="k" * 32) as server:
        log_verbosely(server.http_url, "k" * 32)
        nap = {**row, "word": "nap"}
        if how == "threads":
            took, closing = ask_too_late_in_threads(server.grpc_url, nap)
        else:
            took, closing = asyncio.run(ask_too_late_at_once(server.grpc_url, nap))
        assert len(took) == LATE
        assert max(took) < LIMIT + 5  # where the server's own time would be 6 s and more
        assert closing < 5
        with Client(server.grpc_url, timeout=60.0) as client:
            assert client.predict([row]) == [answer(row)]
        requests_so_far(server.http_url)
        assert server.alive()
    assert sum("rpc_ok=1" in line for line in lines) > LATE  # the log would tell
    assert not [line for line in lines if "cancel" in line.lower()]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_server_that_goes_away_and_comes_back(tmp_path, protocol):
    root = write_repository(tmp_path / "repository")
    rows = some_rows(2)
    slow = [{**rows[0], "word": "sleep"}]

    async def ask_slowly(url):
        async with AsyncClient(url) as client:
            await client.predict(rows)
            ready.set()
            await client.predict(slow * 65)

    with start(root) as server:
        ports = {f"{name}_port": int(getattr(server, f"{name}_url").rpartition(":")[2]) for name in ("http", "grpc")}
        url = getattr(server, f"{protocol}_url")
        ready = threading.Event()
        with Client(url) as client, ThreadPoolExecutor(2) as pool:
            assert client.predict(rows) == [answer(row) for row in rows]
            waiting = [pool.submit(lambda: asyncio.run(ask_slowly(url)))]
            assert ready.wait(30)
            waiting.append(pool.submit(client.predict, slow))
            time.sleep(0.4)
            began = time.monotonic()
            os.kill(server.pid, signal.SIGKILL)
            for future in waiting:
                with pytest.raises(ServerUnavailable, match=f"no server answers at {url}.*tristage serve"):
                    future.result(30)
            assert time.monotonic() - began < 10
            with pytest.raises(ServerUnavailable, match="no server answers"):
                client.predict(rows)
            server.stop()
            with start(root, **ports):
                assert patiently(client.predict, rows) == [answer(row) for row in rows]


# ---------------------------------------------------------------------------------------------------------- verify


def test_golden_rows_agree(client, repository):
    found = verify(client, repository)
    assert (found.stack, found.url, found.rows) == ("tiny", client.url, 100)
    assert found.differences == {"sum": 0.0, "score": 0.0}
    found.check()


@pytest.mark.parametrize(("value", "difference"), [(math.nan, math.inf), (-1010.0 + 1e-3, 1e-3)])
def test_golden_rows_that_differ(client, repository, tmp_path, value, difference):
    root = shutil.copytree(repository, tmp_path / "copy")
    write_golden(root, some_rows(100), score=value)
    found = verify(client, root)
    assert found.differences["sum"] == 0.0
    assert found.differences["score"] == pytest.approx(difference)
    with pytest.raises(ParityError, match='"score" differs by'):
        found.check()
    if math.isfinite(difference):
        verify(client, root, tolerance=1e-2).check()


def test_another_export_is_not_verified(client, repository, tmp_path):
    root = shutil.copytree(repository, tmp_path / "copy")
    other = replace(SIGNATURE, max_batch=32)
    write_manifest(root, Manifest("tiny", "pip-cpu", "ensemble", other, {}, {}, {}))
    with pytest.raises(RepositoryError, match=r"other columns than the export in .*copy"):
        verify(client, root)


@pytest.mark.parametrize("how", ["missing", "corrupt", "empty", "lacking"])
def test_golden_rows_that_cannot_be_read(client, repository, tmp_path, how):
    root = shutil.copytree(repository, tmp_path / "copy")
    golden = root / GOLDEN
    table = pq.read_table(golden)
    if how == "missing":
        golden.unlink()
    elif how == "corrupt":
        golden.write_bytes(b"PAR1")
    else:
        pq.write_table(table.slice(0, 0) if how == "empty" else table.drop_columns(["age", "expected.sum"]), golden)
    says = {"empty": "holds no rows", "lacking": "lacks age, expected.sum"}.get(how, "cannot be read")
    with pytest.raises(RepositoryError, match=says):
        verify(client, root)


# ---------------------------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def run():
    app = typer.Typer()
    app.command()(cli.predict)
    app.command()(cli.verify)
    return lambda *arguments, **more: CliRunner().invoke(app, list(map(str, arguments)), **more)


@pytest.mark.parametrize("target", ["out.parquet", "out.jsonl"])
@pytest.mark.parametrize("source", ["rows.parquet", "rows.jsonl"])
def test_predict_a_file(run, url, tmp_path, monkeypatch, source, target):
    monkeypatch.setattr(cli, "_ROWS_AT_ONCE", 128)
    rows = some_rows(300)
    if source.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / source)
    else:
        (tmp_path / source).write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("predict", "--url", url, tmp_path / source, "-o", tmp_path / target)
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    assert "300 rows written to" in done.stderr
    if target.endswith("parquet"):
        got = pq.read_table(tmp_path / target).to_pylist()
    else:
        got = list(map(json.loads, (tmp_path / target).read_text().splitlines()))
    assert got == [answer(row) for row in rows]


def test_predict_standard_input_to_standard_output(run, url):
    rows = [{**row, "colour": "red", "tokens": [1] * 6} for row in some_rows(5)]
    lines = "\n".join(map(json.dumps, rows))
    done = run("predict", "--url", url, "-", "--unknown", "ignore", input=lines)
    assert done.exit_code == 0, done.output
    assert list(map(json.loads, done.stdout.splitlines())) == [answer(row) for row in rows]
    assert 'note: column "tokens": 5 lists longer than 4 were cut' in done.stderr


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('{"a": 1', "line 1 is not JSON"),
        ("", "no rows in standard input"),
        (
            "\n".join(["", *map(json.dumps, some_rows(2)), json.dumps({**some_rows(1)[0], "age": "x"})]),
            "line 4: .*row 2:",
        ),
        (json.dumps({**some_rows(1)[0], "colour": "red"}), 'line 1: column "colour" is unknown'),
    ],
)
def test_predict_bad_lines(run, served, tmp_path, lines, says):
    out = tmp_path / "out.jsonl"
    done = run("predict", "--url", served.http_url, "-", "-o", out, input=lines)
    with pytest.raises(InputError, match=says):
        raise done.exception
    assert list(tmp_path.iterdir()) == []


def test_verify_prints_and_ends(run, url, repository, tmp_path):
    done = run("verify", repository, "--url", url, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "stack": "tiny",
        "url": url,
        "rows": 100,
        "tolerance": 1e-5,
        "differences": {"sum": 0.0, "score": 0.0},
        "passed": True,
    }
    root = shutil.copytree(repository, tmp_path / "copy")
    write_golden(root, some_rows(100), score=math.nan)
    done = run("verify", root, "--url", url, "--json")
    assert json.loads(done.stdout)["differences"]["score"] == "inf"
    assert not json.loads(done.stdout)["passed"]
    assert isinstance(done.exception, ParityError)
    assert done.exception.exit_code == 1
    assert isinstance(run("verify", root, "--url", url, "--tolerance", "1000").exception, ParityError)
