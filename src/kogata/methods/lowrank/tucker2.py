"""Tucker-2: a 1×1 convolution to fewer channels, the kernel between these, and a 1×1 convolution to all outputs.

Kim et al., ICLR 2016 (1511.06530), section 3.1; the iteration is that of De Lathauwer, De Moor, Vandewalle, SIAM J. Matrix
Anal. 2000:
    W[o, i, k] ≈ Σ_{s,r} U[o, s] C[s, r, k] V[r, i],   U and V with orthonormal columns and rows,
    C = W ×_o Uᵀ ×_i V,   ‖W − W̃‖² = ‖W‖² − ‖C‖².
U and V are initialized with the leading singular vectors of the two unfoldings (HOSVD, with at most √2 times the minimal
error). Then each in turn takes steps of orthogonal iteration on W projected on the other (HOOI), which never decrease ‖C‖.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.forms import Form, Product, Role
from kogata.forms.product import TUCKER
from kogata.job import Kind, Site
from kogata.methods.base.guards import Rank, kernel_of, refuse_unless_fewer, refuse_unless_finite
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels import sizes, svd

STEPS = 3  # steps of orthogonal iteration for each side


@final
@dataclass(frozen=True, kw_only=True)
class Tucker2(WeightMethod):
    """Replace a convolution by 1×1, d×d between ``rank`` channels, and 1×1.

    ``rank`` is a count (int ≥ 1) for both sides, limited to the number of channels, or a fraction in (0, 1) of the channels of
    each side. 1×1 and depthwise convolutions, and weights that would not get smaller, stay as they are.

    >>> from kogata import only
    >>> from kogata.methods import Tucker2
    >>> from kogata.testing.models import job_of
    >>> job = only(Tucker2(rank=8), "deep").apply(job_of("conv"))
    >>> job.model.deep.parametrizations.weight[0].describe()
    'product'
    """

    rank: Rank

    ABOUT = About(
        name="tucker-2",
        family="low rank",
        summary="a convolution between fewer channels, with a 1×1 convolution before and after it",
        paper="Kim et al. 2016, arXiv 1511.06530",
        layers=(Kind.CONV,),
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The largest fraction of the channels, the same on both sides, that fits; None for matrices."""
        rank = sizes.largest_fraction(lambda rank: held(shape, ranks(shape, rank)), fraction * math.prod(shape))
        return cls(rank=rank) if rank and len(shape) > 2 else None

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """Two bases and a core; refused for 1×1 and depthwise convolutions, and where they are no smaller."""
        kernel_of(weight, "tucker-2")
        weight_OIK = weight.flatten(2)
        found = ranks(weight.shape, self.rank)
        refuse_unless_fewer(held(weight.shape, found), weight, f"tucker-2 of ranks {found}")
        refuse_unless_finite(weight, site)
        left_OS, right_IR = bases(weight_OIK, *found)
        core_SRK = torch.einsum("oik,os,ir->srk", weight_OIK, left_OS, right_IR)
        return Product.of(TUCKER, [left_OS, core_SRK, right_IR.T], weight.shape)


def ranks(shape: Sequence[int], rank: float) -> list[int]:
    """The ranks of the outputs and of the inputs."""
    return [min(svd.rank_of(rank, channels), channels) for channels in shape[:2]]


def held(shape: Sequence[int], ranks: Sequence[int]) -> int:
    """The number of entries of the bases and the core for a weight of ``shape``."""
    return ranks[0] * shape[0] + ranks[1] * shape[1] + math.prod(ranks) * math.prod(shape[2:])


def bases(weight_OIK: Tensor, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Orthonormal bases ``[O, S]`` and ``[I, R]`` for S = ``outputs`` and R = ``inputs`` channels."""
    by_input = weight_OIK.transpose(0, 1)
    left_OS = svd.leading(weight_OIK.flatten(1), outputs)
    right_IR = svd.leading(by_input.flatten(1), inputs)
    for _ in range(STEPS):
        left_OS = _turned(torch.einsum("oik,ir->ork", weight_OIK, right_IR).flatten(1), left_OS)
        right_IR = _turned(torch.einsum("iok,os->isk", by_input, left_OS).flatten(1), right_IR)
    return left_OS, right_IR


def _turned(matrix: Tensor, basis: Tensor) -> Tensor:
    """One step of orthogonal iteration with ``matrix`` times its transpose."""
    return torch.linalg.qr(matrix @ (matrix.T @ basis))[0]
