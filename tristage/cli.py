"""The `tristage` command: one word for each stage of a stack's life."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import typer

from tristage import __version__
from tristage.client.cli import predict, verify
from tristage.errors import TristageError
from tristage.export.cli import export
from tristage.export.features_cli import features
from tristage.export.inspect_cli import inspect
from tristage.export.tuning.cli import tune
from tristage.gateway.cli import gateway
from tristage.loadtest.cli import compare, loadtest
from tristage.serving.cli import serve
from tristage.terminal import console, out

__all__ = ["app", "main"]

app = typer.Typer(
    name="tristage",
    help="Turn a trained, stacked recommender into an NVIDIA Triton ensemble, prove that it answers what the training "
    "libraries answered, serve it, and measure what an example costs.",
    epilog="A first run: tristage export stack.yaml -o model_repository --trust; tristage serve model_repository "
    "--cores 0; and in another terminal: tristage verify model_repository; tristage loadtest",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # joins a docstring's lines
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (export, tune, features, inspect, serve, gateway, verify, predict, loadtest, compare):
    app.command()(command)


def _version(asked: bool) -> None:
    if asked:
        out.print(f"tristage {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and end."
    ),
) -> None:
    """Options that stand before a command."""


def main() -> None:
    """Run the command line; an expected error is one line on stderr and an exit code, never a traceback."""
    warnings.showwarning = _note
    try:
        app()
    except TristageError as error:
        console.print(f"[bold red]error:[/] {_escape(str(error))}", soft_wrap=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        console.print(
            f"[bold red]error:[/] {error.name} is not installed; this command needs: pip install 'tristage\\[{extra}]'",
            soft_wrap=True,
        )
        sys.exit(2)


def _note(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """What our own code warns of is one line on stderr; other packages' warnings are not the user's business."""
    if category.__module__.startswith("tristage."):
        console.print(f"[yellow]note:[/] {_escape(str(message))}", soft_wrap=True)


# a package that is missing -> the extra that brings it
_EXTRAS = {
    "aiohttp": "client",
    "catboost": "forests",
    "fastapi": "gateway",
    "fastapi_offline": "gateway",
    "grpc": "client",
    "hpack": "loadtest",
    "joblib": "forests",
    "keras": "tensorflow",
    "lightgbm": "forests",
    "merlin": "export",
    "nvtabular": "export",
    "onnx": "export",
    "onnxruntime": "serve",
    "prometheus_client": "gateway",
    "pyarrow": "client",
    "pytriton": "serve",
    "sklearn": "forests",
    "tensorflow": "tensorflow",
    "torch": "torch",
    "starlette": "gateway",
    "treelite": "export",
    "tritonclient": "client",
    "uvicorn": "gateway",
    "xgboost": "export",
    "yaml": "export",
    "yarl": "client",
}


def _escape(text: str) -> str:
    return text.replace("[", "\\[")


if __name__ == "__main__":
    main()
