"""A packed GRU or LSTM layer that torch computes on a device."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tristage.serving.device.operators import Faults, within
from tristage.serving.device.tables import Table
from tristage.serving.graph import GraphError, Tensor
from tristage.serving.packed_file import map_packed
from tristage.serving.program_file import RecurrenceCall
from tristage.serving.recurrence.call import asked_of, made_by

__all__ = ["DeviceRecurrence"]

_HEADER, _LANES, _PANEL = 128, 16, 64  # as in serving/recurrence/engine.h
_RESET_AFTER, _RESET_BEFORE, _LSTM = range(3)


@dataclass
class DeviceRecurrence:
    """An opened layer.

    Attributes:
        call: what it reads and makes.
        kind: a GRU that resets after its product, one that resets before it, or an LSTM.
        width: numbers in a state.
        weights: of the state: [width, gates * width], z, r, h of a GRU and i, o, f, c of an LSTM.
        late: [width], what is added to a GRU's product before the reset gate multiplies it.
        table: projected inputs by id, [ids, gates * width]; None where they are given.
        backwards: whether the steps are taken from the last on.
        zeros: whether a step that the mask passes over shows zeros.
        faults: takes the ids that the table does not have.
    """

    call: RecurrenceCall
    kind: int
    width: int
    weights: torch.Tensor
    late: torch.Tensor
    table: Table | None
    backwards: bool
    zeros: bool
    faults: Faults

    @classmethod
    def open(
        cls,
        folder: Path,
        call: RecurrenceCall,
        table_of: Callable[[torch.Tensor], Table],
        device: torch.device,
        faults: Faults,
    ) -> DeviceRecurrence:
        """Open the file that a call names.

        Args:
            folder: where it lies.
            call: names it.
            table_of: places a table.
            device: where the weights go.
            faults: takes the ids that the table does not have.

        Raises:
            GraphError: it is missing or damaged.
        """
        try:
            packed = map_packed(folder / call.recurrence, "packed layer")
            kind, width, rows, backwards, zeros = struct.unpack_from("<5Q", packed, 24)
            gates = 4 if kind == _LSTM else 3
            padded = -(-width // _LANES) * _LANES
            values = np.memmap(folder / call.recurrence, "<f4", "c", _HEADER)  # "c": torch wants it writable
            parts, at = [], 0
            for count in (2, 1) if kind == _RESET_BEFORE else (gates,):
                columns = -(-count * padded // _PANEL) * _PANEL
                panels = values[at : at + width * columns].reshape(-1, width, _PANEL)
                at += width * columns
                wide = panels.transpose(1, 0, 2).reshape(width, columns)
                parts += [wide[:, gate * padded : gate * padded + width] for gate in range(count)]
            late = values[at : at + padded][:width]
            at += padded
            its = values[at : at + rows * gates * width].reshape(rows, gates * width)
        except (ValueError, struct.error) as error:
            raise GraphError(f"{folder / call.recurrence} cannot be opened: {error}") from error
        return cls(
            call,
            kind,
            width,
            torch.from_numpy(np.concatenate(parts, axis=1)).to(device),
            torch.from_numpy(late.copy()).to(device),
            table_of(torch.from_numpy(its)) if rows else None,
            bool(backwards),
            bool(zeros),
            faults,
        )

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{'LSTM' if self.kind == _LSTM else 'GRU'} of {self.width}"

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Ids or projected inputs, and the mask."""
        return asked_of(self.call, by_id=self.table is not None)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """States."""
        return made_by(self.call, self.width)

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of its inputs."""
        return tuple(tensor.name for tensor in self.inputs)

    def run(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Answer rows, from states of zeros; nothing waits for the device."""
        inputs = tensors[self.call.inputs]
        mask = None if self.call.mask is None else tensors[self.call.mask].reshape(inputs.shape[:2])
        rows, steps = inputs.shape[:2]
        hidden = torch.zeros(rows, self.width, device=self.weights.device)
        cells = torch.zeros_like(hidden)
        made_of = self.call.makes
        every = hidden.new_zeros(rows, steps, self.width) if "every" in made_of else None
        for step, given in self._given(inputs):
            new, written = self._step(given, hidden, cells)
            if mask is not None:
                valid = mask[:, step, None]
                new, written = torch.where(valid, new, hidden), torch.where(valid, written, cells)
            hidden, cells = new, written
            if every is not None:
                every[:, step] = torch.where(mask[:, step, None], new, 0.0) if mask is not None and self.zeros else new
        made = {"every": every, "last": hidden, "cells": cells}
        return {tensor: value for name, tensor in made_of.items() if (value := made[name]) is not None}

    def _given(self, inputs: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Step by step, the projected inputs [rows, gates * width]."""
        if self.table is not None:
            what = f"an id of {self.call.inputs} is not in its table"
            inputs = within(inputs, len(self.table), what, self.faults)
        steps = range(inputs.shape[1])
        for step in reversed(steps) if self.backwards else steps:
            yield step, inputs[:, step] if self.table is None else self.table.rows(inputs[:, step])

    def _step(
        self, given: torch.Tensor, hidden: torch.Tensor, cells: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        width = self.width
        if self.kind == _LSTM:
            i, o, f, c = torch.addmm(given, hidden, self.weights).split(width, dim=1)
            cells = torch.sigmoid(f) * cells + torch.sigmoid(i) * torch.tanh(c)
            return torch.sigmoid(o) * torch.tanh(cells), cells
        if self.kind == _RESET_AFTER:
            product = hidden @ self.weights
            z, r = torch.sigmoid(given[:, : 2 * width] + product[:, : 2 * width]).split(width, dim=1)
            n = torch.tanh(given[:, 2 * width :] + r * (product[:, 2 * width :] + self.late))
        else:
            first = torch.addmm(given[:, : 2 * width], hidden, self.weights[:, : 2 * width])
            z, r = torch.sigmoid(first).split(width, dim=1)
            n = torch.tanh(torch.addmm(given[:, 2 * width :], r * hidden, self.weights[:, 2 * width :]))
        return torch.lerp(n, hidden, z), cells
