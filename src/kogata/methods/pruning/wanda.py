"""Wanda: prune by weight and activation.

Sun, Liu, Bair, Kolter, "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024 (2306.11695), eq. 1:
    S_ij = |W_ij| · ‖X_j‖₂,  compared within each output row i.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from kogata.calibration.stats import Stat, Stats
from kogata.errors import NotApplicable, UsageError
from kogata.forms import Form, Masked, Role
from kogata.job import Kind, Site
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod


@final
@dataclass(frozen=True, kw_only=True)
class Wanda(WeightMethod):
    """Keep, in each row, the weights that matter most for the layer's output on the calibration data.

    ``sparsity`` is the fraction of each row that becomes zero, in [0, 1).
    """

    sparsity: float

    ABOUT = About(
        name="wanda",
        family="pruning",
        summary="one-shot pruning by weight times the norm of its input",
        paper="Sun et al. 2024, arXiv 2306.11695",
        layers=(Kind.LINEAR, Kind.CONV),
    )
    NEEDS = frozenset({Stat.SQUARE})
    ACCEPTS = frozenset({Role.MATRIX})
    LEAVES = frozenset({Role.VALUES})
    GRID: ClassVar[Mapping[str, tuple[float, ...]]] = {"sparsity": (0.4, 0.5, 0.6, 0.7)}

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise UsageError(f"wanda: sparsity is {self.sparsity}; expected a fraction from 0 to below 1, such as 0.5.")

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The kept weights under a mask."""
        if stats.square_GI is None:
            raise NotApplicable(stats.unseen)
        groups, columns = stats.square_GI.shape
        keep = round((1 - self.sparsity) * columns)
        if not 0 < keep < columns:
            raise NotApplicable(f"keeping {keep} of {columns} weights a row changes nothing or leaves nothing")
        score_GOI = weight.abs().reshape(groups, -1, columns) * stats.square_GI.sqrt()[:, None]
        order_OI = score_GOI.flatten(0, 1).argsort(dim=1, descending=True, stable=True)
        mask_OI = torch.zeros(order_OI.shape, dtype=torch.bool).scatter(1, order_OI[:, :keep], True)
        return Masked.of(weight, mask_OI.reshape(weight.shape))
