"""Unsigned numbers, for which torch has a type but hardly an operator: their bits are computed with as signed ones."""

from __future__ import annotations

import torch

__all__ = ["as_signed", "as_unsigned", "like"]

_SIGNED = {torch.uint64: torch.int64, torch.uint32: torch.int32, torch.uint16: torch.int16}


def as_signed(values: torch.Tensor) -> torch.Tensor:
    """The same bits, as signed numbers where they are of an unsigned type of more than 8 bits."""
    signed = _SIGNED.get(values.dtype)
    return values if signed is None else values.view(signed)


def as_unsigned(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The same bits, as numbers of `dtype`, where that is unsigned."""
    return values.view(dtype) if dtype in _SIGNED else values


def like(values: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """The bits of `values` as numbers of the type that `original` has."""
    return as_unsigned(values, original.dtype)
