"""A Redis that holds features by id: what writes them there, and what a stack's FeatureSource asks.

    features: {source: "examples.feature_store.redis_store:open_store",
               settings: {url: "redis://127.0.0.1:6379/0", prefix: "user:", columns: [age, spend]},
               columns: {age: float32, spend: float32}}

An id's features are one value, its numbers side by side as float32, so that one MGET fetches a whole request's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray

__all__ = ["open_store", "write_features"]

_BATCH = 10_000  # ids written, or asked for, at once


def open_store(
    url: str, prefix: str, columns: Sequence[str], timeout: float = 0.2
) -> Callable[[NDArray[Any]], dict[str, NDArray[np.float32]]]:
    """Connect to a Redis.

    Args:
        url: such as "redis://127.0.0.1:6379/0". A password belongs into the environment, not here.
        prefix: what stands before an id in its key.
        columns: what an id's numbers are called, in order.
        timeout: seconds for each answer of Redis's; a request fails where it takes longer.

    Returns:
        ids [rows] -> column -> float32 [rows], NaN where Redis has no such id.
    """
    client = redis.Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout)
    nothing = np.full(len(columns), np.nan, np.float32).tobytes()

    def ask(ids: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        found: list[bytes] = []
        for start in range(0, len(ids), _BATCH):
            keys = [prefix + text for text in _texts(ids[start : start + _BATCH])]
            found += [nothing if value is None else value for value in client.mget(keys)]
        wide = np.frombuffer(b"".join(found), "<f4").reshape(len(ids), len(columns))
        return {name: wide[:, at] for at, name in enumerate(columns)}

    return ask


def write_features(url: str, prefix: str, ids: NDArray[Any], features: NDArray[np.float32]) -> None:
    """Write features, [rows, columns], under their ids, [rows]."""
    rows = np.ascontiguousarray(features, "<f4")
    with redis.Redis.from_url(url) as client:
        for start in range(0, len(ids), _BATCH):
            texts = _texts(ids[start : start + _BATCH])
            client.mset({prefix + text: rows[start + at].tobytes() for at, text in enumerate(texts)})


def _texts(ids: NDArray[Any]) -> list[str]:
    """Ids as they stand in keys; Triton hands over texts as bytes."""
    return [each.decode() if isinstance(each, bytes) else str(each) for each in ids.tolist()]
