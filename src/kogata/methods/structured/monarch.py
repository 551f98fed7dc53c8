"""Monarch matrices: two block-diagonal matrices with a fixed permutation between them.

Dao, Chen, Sohoni, Desai, Poli, Grogan, Liu, Rao, Rudra, Ré, ICML 2022 (2204.00595), section 3 and algorithm 1; here with r
numbers, not one, from each block of inputs to each block of outputs:
    W[(l, j), (k, i)] = Σ_{r≤R} L_j[l, (k, r)] R_k[(j, r), i].
For each pair (j, k) this is a matrix of rank R in (l, i), and different pairs share no parameters. So the truncated SVD of each
block gives the nearest Monarch matrix, and ‖W − W̃‖² is the sum of all discarded squared singular values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Self, final

import torch
from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable
from kogata.forms import Form, Product, Role
from kogata.forms.product import MONARCH
from kogata.job import Site
from kogata.methods.base.guards import Count, ResidualCount
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.structured import projection
from kogata.settings import Range


@final
@dataclass(frozen=True, kw_only=True)
class Monarch(WeightMethod):
    """Divide inputs and outputs into ``blocks`` (2 or more) blocks each, and give every pair of blocks the rank ``rank``.

    Each side takes its divisor nearest to ``blocks``; None means the square root of the side. ``rank`` is 1 or more.
    ``residual`` is the rank of an added low-rank correction, 0 for none. Weights with a prime side, and those that would not
    get smaller, stay as they are.

    >>> from kogata import only
    >>> from kogata.methods import Monarch
    >>> from kogata.testing.models import job_of
    >>> job = only(Monarch(blocks=4), "hidden").apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'product'
    """

    blocks: Annotated[int, Range(ge=2)] | None = None
    rank: Count = 1
    residual: ResidualCount = 0

    ABOUT = About(
        name="monarch",
        family=projection.FAMILY,
        summary="two block-diagonal matrices with a fixed permutation between them",
        paper="Dao et al. 2022, arXiv 2204.00595",
        layers=projection.LAYERS,
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The largest rank that fits, for about as many blocks as each block has entries."""
        sides = [(size, projection.divisor(size, math.isqrt(size))) for size in (shape[0], math.prod(shape[1:]))]
        pairs, inside = math.prod(blocks for _, blocks in sides), sum(size // blocks for size, blocks in sides)
        rank = int(fraction * math.prod(shape) / (pairs * inside))
        return cls(rank=rank) if rank else None

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The truncated SVD of each block, and the correction; refused for a prime side, and where they are no smaller."""
        rows_OI = projection.matrix(weight, site)
        outputs, inputs = (projection.divisor(size, self.blocks or math.isqrt(size)) for size in rows_OI.shape)
        if min(outputs, inputs) == 1:
            raise NotApplicable(f"a side of {tuple(rows_OI.shape)} has no divisor near the requested number of blocks")
        blocks_JKLI = rows_OI.unflatten(1, (inputs, -1)).unflatten(0, (-1, outputs)).permute(1, 2, 0, 3)
        full = min(blocks_JKLI.shape[2:])
        if self.rank > full:
            raise NotApplicable(f"rank {self.rank} is above the full rank {full} of its blocks {tuple(blocks_JKLI.shape[2:])}")
        left_JKLR, right_JKRI = leading(blocks_JKLI, self.rank)
        parts = [left_JKLR.transpose(1, 2), right_JKRI.transpose(0, 1)]
        form = Product.of(MONARCH, parts, weight.shape)
        return projection.finished(form, weight, self.residual, f"{outputs} by {inputs} blocks of rank {self.rank}")


def leading(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The truncated SVD of each matrix of ``[..., L, I]``, as balanced factors ``[..., L, R]`` and ``[..., R, I]``.

    It uses the eigenvectors of the smaller Gram matrix in float64, which is fast for many small matrices.
    """
    wide = matrices.double()
    if wide.shape[-2] < wide.shape[-1]:
        left, right = leading(matrices.transpose(-1, -2), rank)
        return right.transpose(-1, -2), left.transpose(-1, -2)
    basis_IR = torch.linalg.eigh(wide.transpose(-1, -2) @ wide)[1][..., -rank:].flip(-1)
    left_LR = wide @ basis_IR
    root_R = left_LR.norm(dim=-2, keepdim=True).clamp_min(1e-30).sqrt()
    return (left_LR / root_R).to(matrices.dtype), (basis_IR * root_R).transpose(-1, -2).to(matrices.dtype)
