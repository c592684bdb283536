"""Baseline 2: the training libraries behind FastAPI, as a small service has them: JSON rows in, JSON rows out.

`taskset -c CORE python -m benchmarks.baselines.fastapi_server ARTIFACTS REPOSITORY PORT`. As FastAPI's documentation
advises: models are opened in the lifespan; bodies and answers are pydantic models, read and written in Rust; the path
operation is a `def`, since its work blocks. One uvicorn worker.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import create_model

from benchmarks.baselines.libraries import Libraries
from tristage.columns import Column
from tristage.export.stack_file import read_stack
from tristage.manifest import read_manifest

__all__ = ["application"]

KINDS = {"b": bool, "i": int, "u": int, "f": float, "O": str}


def application(artifacts: Path, columns: tuple[Column, ...]) -> FastAPI:
    """The service.

    Args:
        artifacts: the folder that holds stack.yaml.
        columns: the raw columns of a row, scalars.
    """
    stack = read_stack(artifacts / "stack.yaml")
    opened: dict[str, Libraries] = {}
    fields: dict[str, Any] = {column.name: _field(column) for column in columns}
    row = create_model("Row", **fields)
    rows = create_model("Rows", rows=(list[row], ...))  # type: ignore[valid-type]
    answer = create_model("Answer", **dict.fromkeys(stack.outputs, (float, ...)))  # type: ignore[call-overload]
    answers = create_model("Answers", rows=(list[answer], ...))  # type: ignore[valid-type]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        opened["stack"] = Libraries(stack)
        yield

    app = FastAPI(lifespan=lifespan)

    def frame(given: Any) -> Any:
        import pandas as pd

        made = {
            column.name: np.array([getattr(each, column.name) for each in given.rows], column.numpy_dtype)
            for column in columns
        }
        return opened["stack"].complete(pd.DataFrame(made))

    @app.post("/predict")
    def predict(given: rows) -> answers:  # type: ignore[valid-type]
        found = opened["stack"].answer(frame(given)).tolist()
        return answers(rows=[answer(**dict(zip(stack.outputs, values, strict=True))) for values in found])

    @app.put("/ways")
    def ways(chosen: dict[str, str]) -> None:
        opened["stack"].ask_by(chosen)

    return app


def _field(column: Column) -> Any:
    kind = KINDS[np.dtype(column.numpy_dtype).kind]
    return (kind | None if column.nullable else kind, ...)


def main() -> None:
    """Serve until told to end."""
    artifacts, repository, port = sys.argv[1:]
    columns = read_manifest(Path(repository)).signature.inputs
    app = application(Path(artifacts), columns)
    uvicorn.run(
        app, host="127.0.0.1", port=int(port), workers=1, access_log=False, log_level="warning", timeout_keep_alive=3600
    )


if __name__ == "__main__":
    main()
