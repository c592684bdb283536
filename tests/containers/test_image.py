"""The image that serves: what it holds, how it runs, how it ends."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from containers.conftest import NAME, Container, Engine, serving

from tristage.columns import Column, Signature
from tristage.manifest import Manifest, checksums, write_manifest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("containers")]
HEAVY = ("torch", "tensorflow", "keras", "pandas", "nvtabular", "xgboost", "lightgbm", "onnx", "pip", "uv")
SLOW = """
import time
from pathlib import Path
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        Path("/dev/shm/executing").touch()
        time.sleep(4)
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", np.float32(2) * x)]) for x in inputs]
"""
CONFIG = """
name: "slow"
backend: "python"
max_batch_size: 64
input { name: "x" data_type: TYPE_FP32 dims: [1] }
output { name: "y" data_type: TYPE_FP32 dims: [1] }
instance_group { count: 1 kind: KIND_CPU }
"""


@pytest.fixture(scope="module")
def container(engine: Engine, image: str, tiny_repository: Path) -> Iterator[Container]:
    """The tiny stack, served on one core."""
    with serving(engine, image, tiny_repository, "--env=TRISTAGE_CORES=0", "--env=TRISTAGE_PERCENTILES=1") as running:
        yield running


def test_the_image_is_small(engine: Engine, image: str) -> None:
    assert int(engine("image", "inspect", "--format", "{{.Size}}", image)) <= 1.2e9


def test_the_image_holds_no_compiler_and_no_training_library(container: Container) -> None:
    assert (
        container.sh("for each in cc gcc g++ clang ld as make cmake nvcc; do command -v $each; done", check=False) == ""
    )
    found = f"import importlib.util as i; print([name for name in {HEAVY} if i.find_spec(name)])"
    assert container.sh(f'python -c "{found}"').strip() == "[]"
    assert "_engine" in container.sh("ls /opt/tristage/lib/python3.11/site-packages/tristage/serving/forest")


def test_it_runs_without_privileges_on_a_root_that_cannot_be_written(container: Container) -> None:
    assert container.sh("id -u; id -g").split() == ["10001", "10001"]
    status = container.sh("grep -h -E '^(Uid|Cap(Prm|Eff|Bnd)|NoNewPrivs):' /proc/[0-9]*/status | sort -u")
    fields = [line.split() for line in status.splitlines()]
    assert {name for name, *_ in fields} == {"Uid:", "CapPrm:", "CapEff:", "CapBnd:", "NoNewPrivs:"}
    for name, *values in fields:
        assert set(values) == {{"Uid:": "10001", "NoNewPrivs:": "1"}.get(name, "0" * 16)}, fields
    for folder in ("/", "/opt/tristage/bin", "/etc", "/models", "/usr/local/bin"):
        assert container.sh(f"touch {folder}/x 2>&1; echo $?", check=False).endswith("Read-only file system\n1\n")


def test_triton_is_pinned_to_the_core_of_the_setting(container: Container) -> None:
    script = """
        for process in /proc/[0-9]*; do
          case $(tr '\\0' ' ' <$process/cmdline) in
            /opt/*/tritonserver\\ *) grep Cpus_allowed_list $process/status;;
          esac
        done"""
    assert container.sh(script).split() == ["Cpus_allowed_list:", "0"]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_it_answers_what_training_answered(
    container: Container, tiny_repository: Path, cli: Callable[..., Any], protocol: str
) -> None:
    done = cli("verify", tiny_repository, "--url", getattr(container, protocol))
    assert done.code == 0, done.err
    metrics = urllib.request.urlopen(f"http://127.0.0.1:{container.ports[8002]}/metrics", timeout=10).read().decode()
    assert 'nv_inference_request_summary_us{model="tiny"' in metrics


def test_a_repository_that_is_not_there_says_what_to_do(engine: Engine, image: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    mount = f"--volume={tmp_path}:/models:ro"
    done = engine("run", "--rm", mount, "--entrypoint=sh", image, "-c", "tristage serve 2>&1; echo code $?")
    assert "/models" in done
    assert "tristage export" in done
    assert done.endswith("code 2\n")


@pytest.mark.parametrize("command", ["serve", "gateway"])
def test_a_stop_is_heard_at_once(engine: Engine, image: str, tiny_repository: Path, command: str) -> None:
    mount = f"--volume={tiny_repository}:/models:ro"
    container = engine("run", "--detach", "--stop-timeout=50", mount, image, command).strip().splitlines()[-1]
    try:
        engine("stop", container)  # Python has not begun to run the command
        assert engine("inspect", "--format", "{{.State.ExitCode}}", container).strip() in ("0", "143"), "it was killed"
    finally:
        engine("rm", "--force", container, check=False)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_stop_answers_the_request_in_flight(engine: Engine, image: str, tmp_path: Path, protocol: str) -> None:
    model = tmp_path / "slow" / "1"
    model.mkdir(parents=True)
    (model / "model.py").write_text(SLOW)
    (tmp_path / "slow" / "config.pbtxt").write_text(CONFIG)
    signature = Signature("slow", 64, (Column("x", "float32"),), (Column("y", "float32"),))
    write_manifest(tmp_path, Manifest("slow", "pip-cpu", "ensemble", signature, {}, {}, checksums(tmp_path)))
    tmp_path.chmod(0o755)
    with serving(engine, image, tmp_path) as container, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, getattr(container, protocol))
        while "executing" not in container.sh("ls /dev/shm"):
            time.sleep(0.05)
        engine("stop", container.id)
        assert answer.result(timeout=10) == [[6.0]]
        assert engine("inspect", "--format", "{{.State.ExitCode}} {{.State.OOMKilled}}", container.id).split() == [
            "0",
            "false",
        ]


def ask(url: str) -> Any:
    """What the slow model makes of 3."""
    protocol, _, address = url.partition("://")
    module: Any = grpcclient if protocol == "grpc" else httpclient
    with module.InferenceServerClient(address) as client:
        tensor = module.InferInput("x", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.array([[3.0]], np.float32))
        return client.infer("slow", [tensor]).as_numpy("y").tolist()


def test_the_gpu_image_wants_an_exported_stack(engine: Engine, tmp_path: Path) -> None:
    tag = engine.build("docker/Dockerfile.gpu", f"{NAME}:gpu", "--target", "serve")
    tmp_path.chmod(0o755)
    mount = f"--volume={tmp_path}:/models:ro"
    script = "id -u; command -v tristage-healthy; tristage-triton 2>&1; echo code $?"
    done = engine("run", "--rm", "--read-only", mount, "--entrypoint=sh", tag, "-c", script)
    user, healthy, said, code = done.splitlines()[-4:]
    assert (user, healthy, code) == ("10001", "/usr/local/bin/tristage-healthy", "code 2")
    assert said == "/models holds no exported stack; export one into it: tristage export stack.yaml --target ngc-gpu"
