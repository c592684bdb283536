"""What `docker compose up` starts, and what the compose files say."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from containers.conftest import NAME, ROOT, Engine, find_compose

from tristage.manifest import GOLDEN

DASHBOARD = ROOT / "docker" / "grafana" / "dashboards" / "tristage.json"
FILES = ("compose.yaml", "docker/compose.gpu.yaml")


@dataclass(frozen=True)
class Up:
    """What compose started.

    Attributes:
        repository: what was mounted.
        before: its content before.
        ports: service's published port, by the name of its setting.
        seen: (service, state) in the order they came about.
    """

    repository: Path
    before: str
    ports: dict[str, int]
    seen: list[tuple[str, str]]


def content(folder: Path) -> str:
    """A digest of every file's path, owner and bytes."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_uid}".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def up(
    engine: Engine,
    image: str,
    exporter: str,
    prometheus: str,
    tiny_repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Up]:
    """compose.yaml with the tiny stack in the repository, less Grafana, whose image has no stand-in."""
    repository = tmp_path_factory.mktemp("compose") / "repository"
    shutil.copytree(tiny_repository, repository)
    repository.parent.chmod(0o755)
    ports = {f"TRISTAGE_{name}_PORT": free_port() for name in ("HTTP", "GRPC", "METRICS", "GATEWAY", "PROMETHEUS")}
    env = {name: str(port) for name, port in ports.items()}
    env |= {"TRISTAGE_IMAGE": image, "TRISTAGE_EXPORT_IMAGE": exporter, "TRISTAGE_PROMETHEUS_IMAGE": prometheus}
    env |= {"TRISTAGE_MODELS": str(repository)}
    before = content(repository)
    # the two versions of compose join a container's name differently
    names = {
        f"{NAME}{mark}{name}{mark}1": name for name in ("export", "triton", "gateway", "prometheus") for mark in "-_"
    }
    try:
        with engine.health(names) as seen:
            engine.up("-p", NAME, "up", "--detach", "--no-build", "gateway", "prometheus", env=env)
            deadline = time.monotonic() + 240
            while not {("gateway", "healthy"), ("prometheus", "healthy")} <= set(seen):
                assert time.monotonic() < deadline, seen
                time.sleep(0.2)
        yield Up(repository, before, ports, seen)
    finally:
        engine.up("-p", NAME, "down", "--volumes", env=env)
    assert content(repository) == before, "down must leave the repository as it is"


@pytest.mark.slow
@pytest.mark.xdist_group("containers")
def test_services_become_healthy_in_order(up: Up) -> None:
    order = [step for step in up.seen if step[1] in ("exited", "healthy")]
    assert order[:2] == [("export", "exited"), ("triton", "healthy")]
    assert sorted(order[2:]) == [("gateway", "healthy"), ("prometheus", "healthy")]
    last = ("gateway", "prometheus")
    began = [number for number, (name, state) in enumerate(up.seen) if name in last and state != "absent"]
    assert up.seen.index(("triton", "healthy")) < began[0]


@pytest.mark.slow
@pytest.mark.xdist_group("containers")
def test_the_published_ports_answer_what_training_answered(up: Up, cli: Callable[..., Any]) -> None:
    for url in (
        f"http://127.0.0.1:{up.ports['TRISTAGE_HTTP_PORT']}",
        f"grpc://127.0.0.1:{up.ports['TRISTAGE_GRPC_PORT']}",
    ):
        done = cli("verify", up.repository, "--url", url)
        assert done.code == 0, done.err


@pytest.mark.slow
@pytest.mark.xdist_group("containers")
def test_the_gateway_predicts_the_stacks_example(up: Up) -> None:
    base = f"http://127.0.0.1:{up.ports['TRISTAGE_GATEWAY_PORT']}"
    stack = json.load(urllib.request.urlopen(f"{base}/v1/stack", timeout=10))
    body = json.dumps({"rows": [stack["example"]]}).encode()
    asked = urllib.request.Request(f"{base}/v1/predict", body, {"Content-Type": "application/json"})
    (prediction,) = json.load(urllib.request.urlopen(asked, timeout=10))["predictions"]
    assert set(prediction) == {"like", "reply"}
    assert all(0 < value < 1 for value in prediction.values())


@pytest.mark.slow
@pytest.mark.xdist_group("containers")
def test_ports_are_published_on_loopback_only(up: Up) -> None:
    other = [address[4][0] for address in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    for port in up.ports.values():
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        for address in {address for address in other if not address.startswith("127.")}:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, port), timeout=2).close()


@pytest.mark.slow
@pytest.mark.xdist_group("containers")
def test_prometheus_has_figures_for_every_panel(up: Up, cli: Callable[..., Any]) -> None:
    base = f"http://127.0.0.1:{up.ports['TRISTAGE_PROMETHEUS_PORT']}"
    dashboard = json.loads(DASHBOARD.read_text())
    (variable,) = dashboard["templating"]["list"]
    assert variable["query"]["query"] == "label_values(nv_inference_count, model)"
    *shown, gpu = dashboard["panels"]
    panels = {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in shown}
    deadline = time.monotonic() + 60
    empty = [""]
    while empty:
        assert time.monotonic() < deadline, f"no figures for {empty}"
        done = cli("verify", up.repository, "--url", f"http://127.0.0.1:{up.ports['TRISTAGE_HTTP_PORT']}")
        assert done.code == 0, done.err
        predict_golden(up)  # drift is told from 200 rows on
        empty = [
            expression
            for expressions in panels.values()
            for expression in expressions
            if not query(base, expression.replace("$stack", "tiny").replace("${stack}", "tiny"))
        ]
    scraped = {target["metric"]["job"]: target["value"][1] for target in query(base, "up")}
    assert scraped == {"triton": "1", "gateway": "1"}
    (cost,) = query(base, panels["ms/example"][0].replace("$stack", "tiny"))
    assert 0 < float(cost["value"][1]) < 1000
    steps = query(base, panels["Time per row in each step"][0].replace("${stack}", "tiny"))
    assert {"tiny_features", "tiny_trees", "tiny_keras"} <= {step["metric"]["model"] for step in steps}
    for panel in gpu["panels"]:  # of a GPU, which is not here: that Prometheus takes them
        assert [query(base, target["expr"]) for target in panel["targets"]] == [[]] * len(panel["targets"])


def predict_golden(up: Up) -> None:
    """Send the golden rows through the gateway."""
    rows = pq.read_table(up.repository / GOLDEN)
    sink = BytesIO()
    pq.write_table(rows.drop([name for name in rows.column_names if name.startswith("expected.")]), sink)
    url = f"http://127.0.0.1:{up.ports['TRISTAGE_GATEWAY_PORT']}/v1/predict"
    asked = urllib.request.Request(url, sink.getvalue(), {"Content-Type": "application/vnd.apache.parquet"})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        assert pq.read_table(BytesIO(answer.read())).num_rows == rows.num_rows


def query(base: str, expression: str) -> list[Any]:
    """What Prometheus answers to an expression of the dashboard."""
    expression = expression.replace("$__rate_interval", "1m")
    asked = urllib.parse.urlencode({"query": expression})
    answer = json.load(urllib.request.urlopen(f"{base}/api/v1/query?{asked}", timeout=10))
    assert answer["status"] == "success", answer
    found: list[Any] = answer["data"]["result"]
    return found


@pytest.mark.slow
@pytest.mark.xdist_group("containers")
@pytest.mark.parametrize(
    ("put", "code", "says"),
    [
        ({"manifest.json": '{"target": "pip-cpu"}'}, 0, "holds a stack; it stays as it is"),
        ({"manifest.json": '{"target": "ngc-gpu"}'}, 2, "holds a stack for ngc-gpu, and this server wants pip-cpu"),
        ({"README.md": "", "other.txt": ""}, 2, "other.txt is no part of an exported stack"),
    ],
)
def test_export_leaves_what_is_there(
    engine: Engine, exporter: str, tmp_path: Path, put: dict[str, str], code: int, says: str
) -> None:
    tmp_path.chmod(0o755)
    for name, text in put.items():
        (tmp_path / name).write_text(text)
        os.chown(tmp_path / name, 1234, 1234)
    os.chown(tmp_path, 1234, 1234)
    before = content(tmp_path)
    hardened = ["--read-only", "--cap-drop=all", "--cap-add=SETUID", "--cap-add=SETGID", "--tmpfs=/tmp"]
    script = 'tristage-export-reference 2>&1; echo "code $?"'
    mount = f"--volume={tmp_path}:/models"
    out = engine("run", "--rm", *hardened, "--user=0:0", mount, "--entrypoint=sh", exporter, "-c", script)
    assert says in out
    assert out.endswith(f"code {code}\n")
    assert content(tmp_path) == before


def services(file: str) -> dict[str, Any]:
    """A compose file's services, by YAML alone."""
    found: dict[str, Any] = yaml.safe_load((ROOT / file).read_text())["services"]
    return found


@pytest.mark.parametrize("file", FILES)
def test_compose_takes_the_file(file: str) -> None:
    if not (compose := find_compose()):
        pytest.skip("no docker compose is installed")
    done = subprocess.run(
        [*compose, "-f", file, "config"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)["services"]
    assert {"export", "triton", "gateway", "prometheus", "grafana"} <= set(found)


@pytest.mark.parametrize("file", FILES)
def test_every_service_is_hardened_limited_and_pinned(file: str) -> None:
    for name, service in services(file).items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert service.get("cap_add", []) == (["SETUID", "SETGID"] if name == "export" else []), name
        assert name == "export" or service["healthcheck"]["test"], name
        assert re.search(r":v?\d+\.\d+\.\d+(-\d+\.\d+\.\d+-ubuntu22\.04)?\}?$", service["image"]), service["image"]
        assert all(port.startswith("${TRISTAGE_BIND:-127.0.0.1}:") for port in service.get("ports", [])), name
    assert services(file)["triton"]["volumes"][0].endswith(":/models:ro")


def test_prometheus_collects_the_same_beside_a_gpu_and_its_own() -> None:
    one, other = (
        yaml.safe_load((ROOT / "docker" / "prometheus" / f"{name}.yml").read_text()) for name in ("prometheus", "gpu")
    )
    *same, gpu = other.pop("scrape_configs")
    assert same == one.pop("scrape_configs")
    assert other == one
    port = services("docker/compose.gpu.yaml")["dcgm"]["healthcheck"]["test"][-1].rpartition("/")[-1]
    assert gpu["static_configs"] == [{"targets": [f"dcgm:{port}"]}]


def test_every_mounted_file_is_there() -> None:
    for file in FILES:
        for service in services(file).values():
            for volume in service.get("volumes", []):
                if volume.startswith("."):
                    assert ((ROOT / file).parent / volume.partition(":")[0]).exists(), volume


def test_the_gpu_file_reserves_a_gpu() -> None:
    triton = services("docker/compose.gpu.yaml")["triton"]
    (device,) = triton["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert triton["shm_size"]
    assert triton["ulimits"] == {"memlock": -1, "stack": 67108864}
    assert services("docker/compose.gpu.yaml")["dcgm"]["deploy"] == triton["deploy"]
    assert "nvcr.io/nvidia/tritonserver:24.10-py3" in (ROOT / "docker" / "Dockerfile.gpu").read_text()


def test_every_setting_is_in_the_table() -> None:
    text = (ROOT / "docker" / "README.md").read_text()
    table = set(re.findall(r"^\| `(TRISTAGE_\w+)`", text, re.MULTILINE))
    used = set()
    for path in (ROOT / "compose.yaml", *sorted((ROOT / "docker").rglob("*"))):
        if path.is_file() and path.suffix in {".yaml", ".sh", ""} or path.name.startswith("Dockerfile"):
            used |= set(re.findall(r"TRISTAGE_[A-Z_]+[A-Z]", path.read_text()))
    assert used <= table, used - table
    assert table <= used, table - used
