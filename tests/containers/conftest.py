"""A container engine for the tests of this folder, and the images that they run."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# what engine.sh makes: PODMAN, PODMAN_CONF, BASE
PODMAN = Path("/run/tristage-podman.sock")
PODMAN_CONF = Path("/run/tristage-containers.conf")
# images and containers of several checkouts must not meet
NAME = f"tristage-test-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]}"
BASE = "localhost/debian:bookworm-slim"


@dataclass(frozen=True)
class Engine:
    """A container engine.

    Attributes:
        host: its address, for DOCKER_HOST; empty for the default.
        command: its command line.
        compose: that of compose.
        podman: whether it is podman, which needs systemd to look after health, and so is told to here.
        base: the base image to build on; None for the Dockerfile's own.
    """

    host: str
    command: tuple[str, ...]
    compose: tuple[str, ...]
    podman: bool
    base: str | None

    def __call__(self, *arguments: object, check: bool = True, timeout: float = 120) -> str:
        """What a command of the engine prints."""
        return self._run([*self.command, *map(str, arguments)], {}, check, timeout)

    def up(self, *arguments: object, env: Mapping[str, str], timeout: float = 240) -> str:
        """What a command of compose prints."""
        return self._run([*self.compose, *map(str, arguments)], env, True, timeout)

    def build(self, dockerfile: str, tag: str, *options: str) -> str:
        """Build an image of the checkout; returns the tag."""
        base = ["--build-arg", f"BASE_IMAGE={self.base}"] if self.base else []
        self("build", "--network=host", *base, *options, "-f", ROOT / dockerfile, "-t", tag, ROOT, timeout=580)
        return tag

    @property
    def env(self) -> dict[str, str]:
        """The environment its commands run in."""
        told = {"DOCKER_HOST": self.host} if self.host else {}
        return {**os.environ, **told, **({"CONTAINERS_CONF": str(PODMAN_CONF)} if PODMAN_CONF.is_file() else {})}

    def _run(self, command: list[str], env: Mapping[str, str], check: bool, timeout: float) -> str:
        done = subprocess.run(
            command,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == 0 or not check, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    @contextmanager
    def health(self, names: Mapping[str, str]) -> Iterator[list[tuple[str, str]]]:
        """Look after the health of containers, as an engine does; yields (name, state) in the order they came about.

        Args:
            names: container -> what it is called in what is yielded.
        """
        seen: list[tuple[str, str]] = []
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.3):
                for container, name in names.items():
                    if self.podman:
                        self("healthcheck", "run", container, check=False)
                    form = "{{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{end}}"
                    found = self("inspect", "--format", form, container, check=False).split()
                    state = found[1] if len(found) > 1 and found[0] == "running" else found[0] if found else "absent"
                    if (name, state) not in seen:
                        seen.append((name, state))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield seen
        finally:
            done.set()
            thread.join()


def _find_engine() -> Engine | str:
    """The engine, or why there is none: the one that engine.sh set up, the one of DOCKER_HOST, or docker's."""
    if not (compose := find_compose()):
        return "no docker compose is installed"
    host = os.environ.get("DOCKER_HOST", "")
    base = os.environ.get("TRISTAGE_BASE_IMAGE")
    if PODMAN.is_socket() and host in ("", f"unix://{PODMAN}"):
        engine = Engine(f"unix://{PODMAN}", ("podman",), compose, True, base or BASE)
    elif "podman" in host and shutil.which("podman"):
        engine = Engine(host, ("podman", "--remote", "--url", host), compose, True, base)
    elif shutil.which("docker"):
        engine = Engine(host, ("docker",), compose, False, base)
    else:
        return "no container engine is installed (tests/containers/engine.sh sets one up on Debian)"
    if "linux" not in engine("version", check=False, timeout=60).lower():
        return f"no container engine answers {engine.command[0]} (tests/containers/engine.sh sets one up on Debian)"
    wanted = engine.base or "docker.io/library/debian:bookworm-slim"
    there = engine("image", "inspect", "--format={{.Id}}", wanted, check=False)
    if not (there or engine("pull", "--quiet", wanted, check=False, timeout=300)).strip():
        return f"the image {wanted} cannot be pulled; TRISTAGE_BASE_IMAGE may name another Debian 12"
    return engine


def find_compose() -> tuple[str, ...] | None:
    """The command line of compose, version 2 or 1."""
    for command in (("docker", "compose"), ("docker-compose",)):
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version"], capture_output=True, timeout=30, check=False)
            if done.returncode == 0:
                return command
    return None


@pytest.fixture(scope="session")
def engine() -> Engine:
    """A container engine; tests skip, saying why, where there is none."""
    found = _find_engine()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="session")
def image(engine: Engine) -> str:
    """The image that serves, built."""
    return engine.build("docker/Dockerfile", f"localhost/{NAME}", "--target=serve")


@pytest.fixture(scope="session")
def exporter(engine: Engine, image: str) -> str:
    """The export service's script in an image without torch and TensorFlow, for what happens before it trains."""
    return engine.build(
        "tests/containers/exporter.Dockerfile", f"localhost/{NAME}-exporter", f"--build-arg=SERVE_IMAGE={image}"
    )


@pytest.fixture(scope="session")
def prometheus(engine: Engine) -> str:
    """An image with Prometheus that behaves as the one compose pulls."""
    return engine.build("tests/containers/prometheus.Dockerfile", f"localhost/{NAME}-prometheus")


@dataclass
class Container:
    """A running container of the image that serves."""

    engine: Engine
    id: str
    ports: dict[int, int] = field(default_factory=dict)

    @property
    def http(self) -> str:
        """Triton over HTTP."""
        return f"http://127.0.0.1:{self.ports[8000]}"

    @property
    def grpc(self) -> str:
        """Triton over gRPC."""
        return f"grpc://127.0.0.1:{self.ports[8001]}"

    def sh(self, script: str, check: bool = True) -> str:
        """What a shell in the container prints."""
        return self.engine("exec", self.id, "sh", "-c", script, check=check)


@contextmanager
def serving(engine: Engine, image: str, repository: Path, *options: str) -> Iterator[Container]:
    """A container that serves a repository, hardened as compose.yaml does it; yields it once it is ready."""
    ports = [f"--publish=127.0.0.1::{port}" for port in (8000, 8001, 8002)]
    hardened = ["--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--tmpfs=/tmp", "--shm-size=256m"]
    mount = f"--volume={repository}:/models:ro"
    made = engine("run", "--detach", "--stop-timeout=50", *hardened, *ports, mount, *options, image).strip()
    container = Container(engine, made.splitlines()[-1])
    try:
        for port in (8000, 8001, 8002):
            container.ports[port] = int(engine("port", container.id, f"{port}/tcp").split()[0].rpartition(":")[2])
        deadline = time.monotonic() + 90
        while not _succeeds(engine, container.id, "tristage-healthy", "8000", "/v2/health/ready"):
            assert time.monotonic() < deadline, engine("logs", container.id)
            time.sleep(0.3)
        yield container
    finally:
        engine("kill", container.id, check=False)
        engine("rm", "--force", container.id, check=False)


def _succeeds(engine: Engine, container: str, *command: str) -> bool:
    done: Any = subprocess.run(
        [*engine.command, "exec", container, *command],
        env=engine.env,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return bool(done.returncode == 0)
