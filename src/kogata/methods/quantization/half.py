"""Half precision: store numbers as 16-bit floats (IEEE 754 binary16): w ≈ round₁₆(w)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable
from kogata.forms import Dense, Form, Role
from kogata.job import Site
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod


@final
@dataclass(frozen=True, kw_only=True)
class Half(WeightMethod):
    """Round the numbers themselves, scales and centroids included, to half precision. The last step of a chain."""

    ABOUT = About(
        name="half",
        family="quantization",
        summary="16-bit floats for weights, scales or centroids",
        paper="IEEE 754-2008, binary16",
        accepts=frozenset(Role),
        leaves=frozenset(Role),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """It stores half of the bits of a float32."""
        return cls() if fraction >= 1 / 2 else None

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The rounded values, in a leaf of the same role as long as they are rounded again after training."""
        rounded = weight.half().float()
        if not torch.isfinite(rounded).all():
            raise NotApplicable("it has weights past 65,504, the largest half precision number")
        return Dense(rounded, Role.VECTOR)
