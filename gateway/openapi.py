"""The OpenAPI document, with the stack's own columns in it: names, types, ranges and an example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tristage.columns import NULL_STRING, Column
from tristage.gateway.bodies import JSON, KINDS
from tristage.gateway.settings import Settings
from tristage.gateway.triton import Served

__all__ = ["fill_in", "row_schema"]

_ANY_ROW: dict[str, Any] = {"type": "object", "description": "The columns are known once Triton has been reached."}


def fill_in(document: dict[str, Any], served: Served | None, settings: Settings) -> dict[str, Any]:
    """Add to FastAPI's document what only the served stack tells.

    Args:
        document: as FastAPI makes it; changed in place.
        served: the stack; None where Triton has not been reached yet.
        settings: the gateway's, for its limits.
    """
    schemas = document["components"]["schemas"]
    schemas["Row"] = _ANY_ROW if served is None else row_schema(served)
    schemas["Prediction"] = {"type": "object"} if served is None else _prediction_schema(served)
    rows = {"type": "array", "items": _ref("Row"), "minItems": 1, "maxItems": settings.max_rows}
    example = {} if served is None else {"example": {"rows": [served.example]}}
    binary = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in KINDS if kind != JSON.media_type}
    asked = document["paths"]["/v1/predict"]["post"]
    asked["requestBody"] = {
        "required": True,
        "content": {JSON.media_type: {"schema": _object(rows=rows), **example}, **binary},
    }
    answers = {"type": "array", "items": _ref("Prediction")}
    asked["responses"]["200"] = {
        "description": "A prediction for each row, in order, in the kind that was sent.",
        "headers": {"X-Lists-Cut": {"schema": {"type": "string"}, "description": "column=rows whose list was cut"}},
        "content": {JSON.media_type: {"schema": _object(predictions=answers)}, **binary},
    }
    one = {} if served is None else {"example": {"row": served.example}}
    document["paths"]["/v1/steps"]["post"]["requestBody"] = {
        "required": True,
        "content": {JSON.media_type: {"schema": _object(row=_ref("Row")), **one}},
    }
    return document


def row_schema(served: Served) -> dict[str, Any]:
    """JSON Schema of a row: what it allows is taken, and what it does not is refused (but in lists what is cut off)."""
    return {
        "type": "object",
        "title": f"A row of {served.signature.stack}",
        "properties": {
            column.name: {**_column(column), "examples": [served.example[column.name]]}
            for column in served.signature.inputs
        },
        "required": [column.name for column in served.signature.inputs],
        "additionalProperties": False,
        "example": dict(served.example),
    }


def _prediction_schema(served: Served) -> dict[str, Any]:
    number = {"type": ["number", "null"], "description": "null stands for NaN"}
    return {
        "type": "object",
        "properties": {
            column.name: number
            if column.length is None
            else {"type": "array", "items": number, "minItems": column.length, "maxItems": column.length}
            for column in served.signature.outputs
        },
        "required": [column.name for column in served.signature.outputs],
        "additionalProperties": False,
    }


def _column(column: Column) -> dict[str, Any]:
    if column.length is None:
        return _value(column, nullable=column.nullable)
    return {
        "type": ["array", "null"] if column.nullable else "array",
        "items": _value(column, nullable=False),
        "description": f"a list of {column.dtype}; of more than {column.length} the first are taken",
    }


def _value(column: Column, *, nullable: bool) -> dict[str, Any]:
    if column.dtype == "string":
        # one text is how a null travels to Triton, and so cannot be sent itself
        return {"type": _or_null("string", nullable), "not": {"const": NULL_STRING}}
    if column.dtype == "bool":
        return {"type": ["boolean", "integer", *(["null"] if nullable else [])], "minimum": 0, "maximum": 1}
    if column.dtype == "float32":  # what lies a little above its maximum is still rounded to it
        most = (2.0 - 2.0**-24) * 2.0**127
        return _number("number", column, nullable, exclusiveMinimum=-most, exclusiveMaximum=most)
    if column.dtype == "float64":
        most = float(np.finfo(np.float64).max)
        return _number("number", column, nullable, minimum=-most, maximum=most)
    limits = np.iinfo(column.dtype)
    return _number("integer", column, nullable, minimum=int(limits.min), maximum=int(limits.max))


def _number(kind: str, column: Column, nullable: bool, **limits: float) -> dict[str, Any]:
    return {"type": _or_null(kind, nullable), "format": column.dtype, **limits}


def _or_null(kind: str, nullable: bool) -> str | list[str]:
    return [kind, "null"] if nullable else kind


def _object(**properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
