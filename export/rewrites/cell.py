"""One direction of a GRU or LSTM: its weights, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Cell", "Floats"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Cell:
    """One direction's weights, gates in ONNX's order: z, r, h of a GRU, i, o, f, c of an LSTM.

    Attributes:
        kind: "GRU" or "LSTM".
        kernel: [in, gates * width], of the inputs.
        recurrent: [width, gates * width], of the state.
        bias: [gates * width], added to the projected inputs.
        recurrent_bias: [gates * width], added to the projected state.
        reset_after: whether a GRU's reset gate multiplies the projected state (ONNX's linear_before_reset).
    """

    kind: str
    kernel: Floats
    recurrent: Floats
    bias: Floats
    recurrent_bias: Floats
    reset_after: bool = True

    @property
    def width(self) -> int:
        """Numbers in a state."""
        return len(self.recurrent)

    def __str__(self) -> str:
        return f"{self.kind} {len(self.kernel)} -> {self.width}"

    def projection(self) -> tuple[Floats, Floats]:
        """(kernel, bias) of the inputs' product, with all of the recurrent bias that can be added there."""
        bias = self.bias.astype(np.float64)
        added = self.recurrent_bias.astype(np.float64).copy()
        if self.kind == "GRU" and self.reset_after:
            added[2 * self.width :] = 0
        return self.kernel, (bias + added).astype(np.float32)

    def answers(
        self, inputs: NDArray[np.float64], mask: NDArray[np.bool_] | None, zeros: bool
    ) -> dict[str, NDArray[np.float64]]:
        """The layer in float64, from states of zeros: what to compare with, not what is served.

        Args:
            inputs: [steps, rows, in].
            mask: [steps, rows, 1], false where a step is passed over.
            zeros: whether such a step shows zeros; else the state as it was.

        Returns:
            "every" state that shows [steps, rows, width], the "last" of them, and the states "h" and "c" at the end.
        """
        h = c = np.zeros((inputs.shape[1], self.width))
        every = []
        for number, given in enumerate(inputs @ self.kernel.astype(np.float64) + self.bias):
            valid = True if mask is None else mask[number]
            new, written = self._step(given, h, c)
            h, c = np.where(valid, new, h), np.where(valid, written, c)
            every.append(np.where(valid, h, 0) if zeros else h)
        return {"every": np.stack(every), "last": every[-1], "h": h, "c": c}

    def _step(
        self, given: NDArray[np.float64], h: NDArray[np.float64], c: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        recurrent, bias, width = self.recurrent.astype(np.float64), self.recurrent_bias, self.width
        if self.kind == "LSTM":
            i, o, f, candidate = np.split(given + h @ recurrent + bias, 4, axis=1)
            c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(candidate)
            return _sigmoid(o) * np.tanh(c), c
        z, r = np.split(_sigmoid(given[:, : 2 * width] + h @ recurrent[:, : 2 * width] + bias[: 2 * width]), 2, axis=1)
        if self.reset_after:
            inner = r * (h @ recurrent[:, 2 * width :] + bias[2 * width :])
        else:
            inner = (r * h) @ recurrent[:, 2 * width :] + bias[2 * width :]
        n = np.tanh(given[:, 2 * width :] + inner)
        return z * h + (1 - z) * n, c


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 * np.tanh(0.5 * values) + 0.5)
