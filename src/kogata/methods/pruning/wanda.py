"""Wanda: prune by the product of weight and activation norm.

Sun, Liu, Bair, Kolter, "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024 (2306.11695), eq. 1:
    S_ij = |W_ij| · ‖X_j‖₂,  compared within each output row i.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from kogata.calibration.stats import Stat, Stats
from kogata.errors import NotApplicable
from kogata.forms import Form, Masked, Role
from kogata.job import Kind, Site
from kogata.methods.base.guards import Sparsity
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels import sizes


@final
@dataclass(frozen=True, kw_only=True)
class Wanda(WeightMethod):
    """Keep, in each row, the weights with the largest |w| times the norm of their inputs on the calibration data.

    ``sparsity`` is the fraction of each row that becomes zero, in [0, 1). Weights whose inputs cannot be seen stay as they
    are.

    >>> from kogata import only
    >>> from kogata.methods import Wanda
    >>> from kogata.testing.models import job_of
    >>> job = only(Wanda(sparsity=0.75), "hidden").apply(job_of("conv"))
    >>> (job.model.hidden.weight != 0).sum(1).unique()
    tensor([24])
    """

    sparsity: Sparsity

    ABOUT = About(
        name="wanda",
        family="pruning",
        summary="one-shot pruning by weight times the norm of its input",
        paper="Sun et al. 2024, arXiv 2306.11695",
        layers=(Kind.LINEAR, Kind.CONV),
        needs=frozenset({Stat.SQUARE}),
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.VALUES}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The sparsity at which the kept numbers, equally many in each row, and their mask have the size."""
        columns = math.prod(shape[1:])
        keep = sizes.kept(shape, fraction) // shape[0]
        return cls(sparsity=1 - keep / columns) if keep else None

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
