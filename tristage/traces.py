"""Where traces go: an OpenTelemetry collector's address, as an option or OpenTelemetry's own environment says it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from tristage.errors import InputError

__all__ = ["collector", "collector_of_environment"]

_PATH = "/v1/traces"  # OTLP over HTTP: what follows a collector's address
_EXAMPLE = "http://127.0.0.1:4318"


def collector(url: str) -> str:
    """The URL that spans are posted to, by OTLP over HTTP.

    Args:
        url: the collector's address, such as "http://127.0.0.1:4318", or with a path of its own.

    Raises:
        InputError: it is no such URL.
    """
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        whole = False
    if not whole or parts.query or parts.fragment or not url.isascii() or any(mark in url for mark in " ,="):
        raise InputError(f'the collector "{url}" cannot be read; write the address of its OTLP over HTTP, {_EXAMPLE}')
    return url if parts.path.strip("/") else f"{url.rstrip('/')}{_PATH}"


def collector_of_environment(environ: Mapping[str, str] = os.environ) -> str | None:
    """The URL that OpenTelemetry's own variables name for traces; None where they name none, or turn traces off.

    Source: OpenTelemetry's specification, "Environment Variable Specification" and "OTLP Exporter Configuration".

    Raises:
        InputError: they ask for a protocol other than OTLP over HTTP, or what they name is no URL.
    """

    def value(name: str) -> str:
        return environ.get(name, "").strip()

    if value("OTEL_SDK_DISABLED").lower() == "true" or value("OTEL_TRACES_EXPORTER") not in ("", "otlp"):
        return None
    whole, base = value("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), value("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not whole and not base:
        return None
    protocol = value("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or value("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in ("", "http/protobuf", "http/json"):
        raise InputError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol}, and traces go by http/protobuf here; name the collector's "
            f"port for that with TRISTAGE_TRACES_URL={_EXAMPLE}, or turn traces off with OTEL_TRACES_EXPORTER=none"
        )
    return collector(whole or f"{base.rstrip('/')}{_PATH}")
