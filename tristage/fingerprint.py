"""Text keys as whole numbers of 64 bits, so that tables of millions of them are looked up without the texts.

A fingerprint is the first eight bytes of BLAKE2b, little-endian. Two fitted keys of one fingerprint are refused at
export; an unseen key is taken for one of n fitted ones with probability n / 2**64 (one in 10**12 at 20 million keys).
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DERIVED", "fingerprints"]

# a graph's input of this name is made of the text column whose name follows
DERIVED = "__fingerprint__"


def fingerprints(texts: Iterable[Any]) -> NDArray[np.int64]:
    """Fingerprints of texts, [texts] int64."""
    joined = b"".join([blake2b(text.encode(), digest_size=8).digest() for text in texts])
    return np.frombuffer(joined, "<i8").astype(np.int64, copy=False)
