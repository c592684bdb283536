"""Starts Triton on a model repository, and holds what runs inside it."""

from __future__ import annotations

from tristage.serving.server import Server, serve

__all__ = ["Server", "serve"]
