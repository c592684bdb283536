"""Finds the Triton that the nvidia-pytriton wheel carries, and puts together what it needs to run tristage's models.

The wheel holds NVIDIA's own tritonserver, its Python backend and one stub for each version of Python, but not laid out
so that tritonserver finds them; and tristage has a backend of its own. `find_triton` makes a folder of links that is,
once for each environment, in the user's cache.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tristage
from tristage.errors import ServerError
from tristage.serving.backend import find_library

__all__ = [
    "ADMIN_HEADER",
    "REPOSITORY_HEADER",
    "THREAD_VARIABLES",
    "Ports",
    "Triton",
    "arguments",
    "environment",
    "find_triton",
]

THREAD_VARIABLES = (
    "TRISTAGE_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
# the header that carries the key over HTTP; over gRPC it is called triton-grpc-protocol-ADMIN_HEADER
ADMIN_HEADER = "tristage-admin-key"
# the same for loading and unloading models, whose key only the program that started the server has
REPOSITORY_HEADER = "tristage-repository-key"
# tracing and logging write files, and shared memory is any program's
_ADMIN_APIS = "trace,logging"
_REMOTE_ADMIN_APIS = f"shared-memory,{_ADMIN_APIS}"
CACHE_BYTES = 64 << 20  # of answers that are kept
EXIT_TIMEOUT = 30  # seconds Triton waits for requests in flight when it is told to end

_STUB = Path(__file__).parent / "stub"
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_INSTALL = 'install tristage\'s serve extra: pip install "tristage[serve]"'


@dataclass(frozen=True)
class Triton:
    """A tritonserver that can be run.

    Attributes:
        binary: the executable.
        backends: the folder to hand over as --backend-directory.
        caches: the folder to hand over as --cache-directory.
        libraries: folders for LD_LIBRARY_PATH.
        python: folder for PATH; its python3 is the running interpreter.
        start: the folder to start it in, see stub/tristage.py.
        libpython: the running Python's library, which it has to have loaded already, see backend/backend.c.
    """

    binary: Path
    backends: Path
    caches: Path
    libraries: tuple[Path, ...]
    python: Path
    start: Path
    libpython: Path


@dataclass(frozen=True)
class Ports:
    """The three ports a server listens on."""

    http: int
    grpc: int
    metrics: int


def find_triton(backends: Path | None = None) -> Triton:
    """Find the wheel's tritonserver and lay out its Python backend for the running interpreter.

    Args:
        backends: a folder of further backends, such as `fil` and `onnxruntime`, each a folder; the wheel has none.

    Raises:
        ServerError: the wheel is not installed or has no stub for this Python, libpython is missing, there is no
            backend in the folder, or no folder for the layout can be written.
    """
    spec = importlib.util.find_spec("pytriton")  # importing it would start loggers and pull half its dependencies
    if spec is None or spec.origin is None:
        raise ServerError(f"no Triton is installed in {sys.prefix}: the package nvidia-pytriton is missing; {_INSTALL}")
    package = Path(spec.origin).parent
    libraries = package.parent / "nvidia_pytriton.libs"
    binary = package / "tritonserver" / "bin" / "tritonserver"
    stub = package / "tritonserver" / "python_backend_stubs" / _PYTHON / "triton_python_backend_stub"
    backend = package / "tritonserver" / "backends" / "python"
    for path in (binary, backend, libraries):
        if not path.exists():
            raise ServerError(f"the installed nvidia-pytriton has no {path}; {_INSTALL}")
    if not stub.exists():
        has = ", ".join(sorted(folder.name for folder in stub.parent.parent.glob("*")))
        raise ServerError(f"the installed nvidia-pytriton cannot run models in Python {_PYTHON} (only in {has})")

    links = {f"backends/python/{path.name}": path for path in backend.iterdir() if path.is_file()}
    links[f"backends/python/{stub.name}"] = stub
    own = find_library() or _STUB / "model.py"
    links[f"backends/tristage/{own.name}"] = own
    links.update({f"backends/{folder.name}": folder for folder in _further(backends)})
    python_library = f"libpython{_PYTHON}.so.1.0"
    if python_library.encode() in stub.read_bytes():
        links[f"lib/{python_library}"] = libpython = find_libpython(python_library)
    else:  # the stub for 3.13 brings its own
        libpython = next(libraries.glob(f"libpython3-*{_PYTHON.removeprefix('3')}.so.1.0"))
    in_venv = sys.prefix != sys.base_prefix  # a venv is found by what lies beside its python3, so no link to it will do
    if not in_venv:
        links["bin/python3"] = Path(sys.executable)  # its own folder's python3 may be another one
    layout = _lay_out(links, f"triton-{importlib.metadata.version('nvidia-pytriton')}-python{_PYTHON}")
    return Triton(
        binary=binary,
        backends=layout / "backends",
        caches=package / "tritonserver" / "caches",
        libraries=(libraries, layout / "lib"),
        python=Path(sys.executable).parent if in_venv else layout / "bin",
        start=_STUB,
        libpython=libpython,
    )


def _further(backends: Path | None) -> list[Path]:
    if backends is None:
        return []
    backends = backends.absolute()
    found = [
        library.parent
        for library in sorted(backends.glob("*/libtriton_*.so"))
        if library.parent.name not in ("python", "tristage")
    ]
    if not found:
        raise ServerError(
            f"{backends} holds no Triton backend; it should be a folder such as /opt/tritonserver/backends, with "
            "fil/libtriton_fil.so and onnxruntime/libtriton_onnxruntime.so in it"
        )
    return found


def find_libpython(name: str) -> Path:
    """The shared library of the running Python, which a statically linked interpreter may come without.

    Raises:
        ServerError: it is nowhere; the message says how to get it.
    """
    for folder in _library_folders():
        if (folder / name).is_file():
            return folder / name
    raise ServerError(
        f"{name} is not on this machine, and Triton runs Python models with it; on Debian or Ubuntu: "
        f"apt install libpython{_PYTHON}; on Fedora: dnf install python{_PYTHON}-libs; or use a Python that brings "
        "it, such as uv's or conda's"
    )


def _library_folders() -> Iterator[Path]:
    for variable in ("LIBDIR", "LIBPL"):
        if folder := sysconfig.get_config_var(variable):
            yield Path(folder)
            yield Path(folder) / (sysconfig.get_config_var("MULTIARCH") or "")
    for prefix in (sys.base_prefix, sys.base_exec_prefix):
        yield Path(prefix) / "lib"
        yield Path(prefix) / "lib64"
    for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":"):
        if folder:
            yield Path(folder)
    yield from _ldconfig_folders()


def _ldconfig_folders() -> Iterator[Path]:
    for command in ("ldconfig", "/sbin/ldconfig"):  # /sbin is not on every user's PATH
        try:
            listing = subprocess.run(  # noqa: S603
                [command, "-p"], capture_output=True, text=True, timeout=10, check=True
            ).stdout
        except (OSError, subprocess.SubprocessError):
            continue
        for line in listing.splitlines():
            if "libpython" in line and " => " in line:
                yield Path(line.rpartition(" => ")[2].strip()).parent
        return


def _lay_out(links: Mapping[str, Path], name: str) -> Path:
    """A folder that holds `links` (relative name -> file), made once and shared by every server that needs the same."""
    digest = hashlib.sha256(repr(sorted((link, str(path)) for link, path in links.items())).encode()).hexdigest()
    parent = _cache_folder()
    final = parent / f"{name}-{digest[:12]}"
    if all((final / link).exists() for link in links):
        return final
    aside = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
    try:
        for link, path in links.items():
            (aside / "new" / link).parent.mkdir(parents=True, exist_ok=True)
            if path.name == "libtriton_python.so":  # for a backend that is Python, Triton wants the file itself
                shutil.copyfile(path, aside / "new" / link)
            else:
                (aside / "new" / link).symlink_to(path)
        try:
            (aside / "new").rename(final)
        except OSError:  # another process was faster, or what lies there is broken
            if not all((final / link).exists() for link in links):
                final.rename(aside / "broken")
                (aside / "new").rename(final)
    except OSError as error:
        if not all((final / link).exists() for link in links):
            raise ServerError(f"cannot lay out Triton's Python backend in {final}: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def _cache_folder() -> Path:
    """The user's cache, or a private folder under the temporary one where that cannot be written (a read-only root)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "tristage")
    try:
        cache = cache.expanduser()
        cache.mkdir(parents=True, exist_ok=True)
        if os.access(cache, os.W_OK):
            return cache
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        pass
    fallback = Path(tempfile.gettempdir()) / f"tristage-{os.getuid()}"
    try:
        fallback.mkdir(mode=0o700, exist_ok=True)
        status = fallback.lstat()
    except OSError as error:
        raise ServerError(f"neither {cache} nor {fallback} can be written ({error}); set XDG_CACHE_HOME") from error
    # the name can be guessed, and what lies there is executed: another user's folder must not be taken
    if status.st_uid != os.getuid() or status.st_mode & 0o022 or not fallback.is_dir() or fallback.is_symlink():
        raise ServerError(f"{cache} cannot be written, and {fallback} is not yours alone; set XDG_CACHE_HOME")
    return fallback


def arguments(
    triton: Triton,
    repository: Path,
    staging: Path,
    *,
    host: str,
    ports: Ports,
    server_id: str,
    admin_key: str,
    repository_key: str,
    percentiles: bool,
    traces: str | None,
    cache: bool = False,
    rate_limits: bool = False,
) -> list[str]:
    """tritonserver's command line.

    Args:
        triton: the server to run.
        repository: the folder of the models.
        staging: a further one, empty at the start, for models that are loaded later.
        host: the address to listen on.
        ports: the ports to listen on.
        server_id: names the server and its regions in /dev/shm.
        admin_key: what a request to tracing or logging, and where other machines reach it to shared memory, must carry,
            see `ADMIN_HEADER`.
        repository_key: what a request to list, load or unload models must carry, see `REPOSITORY_HEADER`.
        percentiles: whether the metrics hold percentiles of each model's durations.
        traces: the URL that spans of requests with a `traceparent` are posted to, by OTLP over HTTP; None for none.
        cache: whether answers may be kept, for models whose configuration says so.
        rate_limits: whether the resources that configurations speak of are dealt out.
    """
    # programs on this machine may hand over tensors in shared memory; others have none in common with Triton
    apis = _ADMIN_APIS if host.startswith("127.") else _REMOTE_ADMIN_APIS
    return [
        str(triton.binary),
        f"--id={server_id}",
        f"--model-repository={repository}",
        f"--model-repository={staging}",
        "--model-control-mode=explicit",
        "--load-model=*",
        "--strict-readiness=false",  # it is as ready as before while it loads another model, and starts with all
        "--exit-on-error=true",
        "--disable-auto-complete-config",
        f"--backend-directory={triton.backends}",
        f"--backend-config=python,shm-region-prefix-name={server_id}",
        f"--exit-timeout-secs={EXIT_TIMEOUT}",
        f"--http-address={host}",
        f"--http-port={ports.http}",
        "--reuse-http-port=false",
        f"--grpc-address={host}",
        f"--grpc-port={ports.grpc}",
        "--reuse-grpc-port=false",
        f"--metrics-address={host}",
        f"--metrics-port={ports.metrics}",
        f"--metrics-config=summary_latencies={str(percentiles).lower()}",
        f"--http-restricted-api={apis}:{ADMIN_HEADER}={admin_key}",
        f"--http-restricted-api=model-repository:{REPOSITORY_HEADER}={repository_key}",
        f"--grpc-restricted-protocol={apis}:{ADMIN_HEADER}={admin_key}",
        f"--grpc-restricted-protocol=model-repository:{REPOSITORY_HEADER}={repository_key}",
        *([] if traces is None else _tracing(traces)),
        *([f"--cache-config=local,size={CACHE_BYTES}", f"--cache-directory={triton.caches}"] if cache else []),
        *(["--rate-limit=execution_count"] if rate_limits else []),
    ]


def _tracing(url: str) -> list[str]:
    # of every so many requests, none: those with a traceparent are recorded whatever the rate, and no others
    settings = ("mode=opentelemetry", f"opentelemetry,url={url}", "level=TIMESTAMPS", "rate=0", "count=-1")
    return [f"--trace-config={setting}" for setting in settings]


def environment(triton: Triton, cores: Sequence[int] | None, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment tritonserver and its stubs run in: `base` with this interpreter first and thread pools bounded.

    With `cores`, every thread pool gets that many threads; without, a pool that `base` sizes keeps its size and the
    others get as many threads as this process may use cores.
    """
    env = dict(base)
    threads = str(len(cores) if cores else len(os.sched_getaffinity(0)))
    for variable in THREAD_VARIABLES:
        if cores or variable not in env:
            env[variable] = threads
    env["LD_LIBRARY_PATH"] = _join(*map(str, triton.libraries), env.get("LD_LIBRARY_PATH"))

    # the stub embeds Python, which finds its packages by looking for python3 on PATH
    env["PATH"] = _join(str(triton.python), env.get("PATH") or os.defpath)
    if sys.prefix != sys.base_prefix:
        env["VIRTUAL_ENV"] = sys.prefix
    else:
        env.pop("VIRTUAL_ENV", None)
    home = str(Path(tristage.__file__).resolve().parent.parent)
    env["TRISTAGE_PATH"] = _join(home, *(str(Path(folder).absolute()) for folder in sys.path if folder))
    return env


def _join(*paths: str | None) -> str:
    return ":".join(path for path in paths if path)
