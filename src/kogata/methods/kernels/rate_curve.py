"""How many bits the codes of a net need as the slope of loss per bit changes, from a sample of the rows of each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from kogata.coding.plane import entropy_bits
from kogata.methods.kernels.one_grid import MOST, OneGrid

SAMPLE = 1 << 14  # entries of a leaf that are rounded at each step
FINEST, COARSEST = -10, 4  # steps that are tried: powers of two, relative to the root mean square of the weights
HALVINGS = 40  # bisection steps for the logarithm of the slope


@dataclass(frozen=True, kw_only=True)
class CurvePart:
    """A leaf of ``count`` weights: bits per weight at several steps, and the slope of a step of 1, P · F of ``rate_obs``."""

    steps: tuple[float, ...]
    bits_per_weight: tuple[float, ...]
    count: int
    price: float

    @classmethod
    def of(cls, grid: OneGrid, rate: float, price: float) -> Self:
        """Round a sample of the rows at each step. ``rate`` is the price of a bit."""
        sample = grid.sampled(SAMPLE)
        kept = sample.layer.kept_GOI
        weights = sample.layer.weight_GOI[kept]
        size = max(float(weights.square().mean().sqrt()), 1e-30) if weights.numel() else 1.0
        finest = float(grid.layer.weight_GOI.abs().max()) / MOST
        steps = [max(size * 2.0**power, finest, 1e-37) for power in range(FINEST, COARSEST + 1)]
        found = [_bits(sample.codes(step, rate)[kept]) for step in steps]
        return cls(steps=tuple(steps), bits_per_weight=tuple(found), count=int(grid.layer.kept_GOI.sum()), price=price)

    def bits(self, slope: float) -> float:
        """The bits of all codes, interpolated between the steps that were tried."""
        step = math.log(slope / self.price) / 2
        return self.count * float(np.interp(step, np.log(self.steps), self.bits_per_weight))


def _bits(codes: torch.Tensor) -> float:
    """Static entropy of a sample of codes, per code."""
    return entropy_bits(codes.unique(return_counts=True)[1].numpy()) / max(codes.numel(), 1)


def bits(parts: Sequence[CurvePart], slope: float) -> float:
    """Predicted bits of the codes of all leaves."""
    return sum(part.bits(slope) for part in parts)


def slope_of_bits(parts: Sequence[CurvePart], wanted: float) -> float:
    """The slope at which the codes need about ``wanted`` bits; the largest or smallest one that was tried where none does."""
    low = min(math.log(part.price) + 2 * math.log(part.steps[0]) for part in parts)
    high = max(math.log(part.price) + 2 * math.log(part.steps[-1]) for part in parts)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if bits(parts, math.exp(middle)) > wanted else (low, middle)
    return math.exp(high)


def slope_of_loss(parts: Sequence[CurvePart], wanted: float) -> float:
    """The slope at which small steps would raise the loss by ``wanted``."""
    return 24 * wanted / sum(part.count for part in parts)
