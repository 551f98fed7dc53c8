"""How many bits the codes of a net need, and which loss they cost, as the slope of loss per bit changes: without rounding it.

The codes of a leaf at step s are about those of its weights rounded to the nearest multiple of s, whose entropy a sample tells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from kogata.coding.plane import entropy_bits

SAMPLE = 16_381  # weights of a leaf that are looked at; prime, to spread them over all columns
HALVINGS = 40  # bisection steps for the logarithm of the slope


@dataclass(frozen=True, kw_only=True)
class CurvePart:
    """A leaf of ``count`` weights: a sample of them, and the slope of a step of 1, the product P · F of ``rate_obs``."""

    sample: Tensor
    count: int
    price: float

    @classmethod
    def of(cls, weight: Tensor, price: float) -> Self:
        """Sample evenly spaced weights."""
        size = min(weight.numel(), SAMPLE)
        chosen = torch.arange(size) * weight.numel() // size
        return cls(sample=weight.flatten()[chosen].double(), count=weight.numel(), price=price)

    def bits(self, slope: float) -> float:
        """Static entropy of all codes, and what a model of it takes: ½ log2 of their number for each distinct code."""
        code = (self.sample / math.sqrt(slope / self.price)).round_()
        counts = code.unique(return_counts=True)[1]
        model = (len(counts) - 1) * math.log2(self.count + 1) / 2
        return entropy_bits(counts.numpy()) / len(code) * self.count + model

    def loss(self, slope: float) -> float:
        """Predicted increase of the loss: that of uniform errors, at most that of losing the weights."""
        square = min(slope / self.price / 12, float(self.sample.square().mean()))
        return self.count * self.price / 2 * square


def bits(parts: Sequence[CurvePart], slope: float) -> float:
    """Predicted bits of the codes of all leaves."""
    return sum(part.bits(slope) for part in parts)


def loss(parts: Sequence[CurvePart], slope: float) -> float:
    """Predicted increase of the loss of a sample from all leaves."""
    return sum(part.loss(slope) for part in parts)


def slope_of_bits(parts: Sequence[CurvePart], wanted: float) -> float:
    """The slope at which the codes need about ``wanted`` bits; the largest or smallest sensible one where none does."""
    largest = max(4 * part.price * float(part.sample.square().max()) for part in parts)  # every code is 0
    low, high = math.log(max(largest, 1e-300)) - 120, math.log(max(largest, 1e-300))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if bits(parts, math.exp(middle)) > wanted else (low, middle)
    return math.exp(high)


def slope_of_loss(parts: Sequence[CurvePart], wanted: float) -> float:
    """The slope at which small steps would raise the loss by ``wanted``."""
    return 24 * wanted / sum(part.count for part in parts)
