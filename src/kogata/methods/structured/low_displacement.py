"""Toeplitz-like matrices of low displacement rank: sums of a few products of a circulant and a skew-circulant matrix.

Sindhwani, Sainath, Kumar, NeurIPS 2015 (1510.01722), equations 2 to 5; the inversion by Pan, "Structured Matrices and
Polynomials", 2001:
    ∇(M) = Z₁ M − M Z₋₁ = Σ_{r≤R} g_r k_rᵀ   ⇔   M = Σ_{r≤R} Z₁(g_r) Z₋₁(h_r),   h_r = ½ J k_r,
where J reverses the order. ∇ is invertible, so its truncated SVD gives generators of rank R. They are exact for a weight with
that displacement rank (2 for a Toeplitz matrix). For other weights they are optimal for the displacement, not for the weight,
and far too large; M is therefore scaled by ⟨W, M⟩ / ‖M‖², the least-squares factor. The approximation of most weights is poor,
so train afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable
from kogata.forms import Form, Role
from kogata.forms.displacement import Displacement, displacement, padded
from kogata.job import Site
from kogata.methods.base.guards import Count, ResidualCount, refuse_unless_fewer
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels import svd
from kogata.methods.structured import projection


@final
@dataclass(frozen=True, kw_only=True)
class LowDisplacement(WeightMethod):
    """Replace a matrix by a sum of ``rank`` (1 or more) products of a circulant and a skew-circulant matrix.

    These are square, of the size of the longer side, and cropped. ``residual`` is the rank of an added low-rank correction, 0
    for none. Weights that would not get smaller stay as they are.

    >>> from kogata import only
    >>> from kogata.methods import LowDisplacement
    >>> from kogata.testing.models import job_of
    >>> job = only(LowDisplacement(rank=2), "hidden").apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'displacement'
    """

    rank: Count
    residual: ResidualCount = 0

    ABOUT = About(
        name="low-displacement",
        family=projection.FAMILY,
        summary="a Toeplitz-like matrix: a sum of products of a circulant and a skew-circulant matrix",
        paper="Sindhwani et al. 2015, arXiv 1510.01722",
        layers=projection.LAYERS,
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The largest rank that fits."""
        rank = int(fraction * math.prod(shape) / held(shape, 1))
        return cls(rank=rank) if rank else None

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The generators, from the truncated SVD of the displacement, and the correction; refused where they are no smaller."""
        rows_OI = projection.matrix(weight, site)
        size = max(rows_OI.shape)
        if self.rank > size:
            raise NotApplicable(f"rank {self.rank} is above the full displacement rank {size}")
        refuse_unless_fewer(held(weight.shape, self.rank), weight, f"displacement rank {self.rank}")
        u_NR, s_R, v_RN = svd.truncated(displacement(padded(rows_OI)), self.rank)
        root_R = (s_R / 2).sqrt()
        g_RN, h_RN = (u_NR * root_R).T, (root_R[:, None] * v_RN).flip(1)
        found = Displacement.of(g_RN, h_RN, weight.shape).dense().detach()
        scale = float((found * weight).sum() / found.square().sum().clamp_min(1e-30))
        even = abs(scale) ** 0.5  # balances the generators, so that a training step affects the product equally through both
        form = Displacement.of(g_RN * math.copysign(even, scale), h_RN * even, weight.shape)
        return projection.finished(form, weight, self.residual, f"displacement rank {self.rank}")


def held(shape: Sequence[int], rank: int) -> int:
    """The number of entries of the generators for a weight of ``shape``."""
    return 2 * rank * max(shape[0], math.prod(shape[1:]))
