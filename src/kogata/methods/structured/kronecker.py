"""Kronecker products: a weight becomes a sum of Kronecker products of two small matrices.

Van Loan, Pitsianis 1993, "Approximation with Kronecker products", theorem 2.1; as layers of a network, Zhou et al. 2015
(1507.05775):
    W ≈ Σ_{r≤R} A_r ⊗ B_r,   W[(a, b), (c, d)] rearranged to M[(a, c), (b, d)] = Σ_r vec(A_r) vec(B_r)ᵀ,
so the truncated SVD of M gives the best sum, and ‖W − W̃‖² is the sum of the discarded squared singular values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable
from kogata.forms import Form, Product, Role
from kogata.forms.product import KRONECKER
from kogata.job import Site
from kogata.methods.base.guards import Rank, ResidualCount, refuse_unless_fewer
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels import svd
from kogata.methods.structured import projection


@final
@dataclass(frozen=True, kw_only=True)
class Kronecker(WeightMethod):
    """Replace a matrix by a sum of ``rank`` Kronecker products.

    ``rank`` is a count (int ≥ 1), or a fraction in (0, 1) of the full rank of the rearranged matrix. Each side is factored into
    two integers close to its square root. ``residual`` is the rank of an added low-rank correction, 0 for none. Weights with a
    prime side, and those that would not get smaller, stay as they are.

    >>> from kogata import only
    >>> from kogata.methods import Kronecker
    >>> from kogata.testing.models import job_of
    >>> job = only(Kronecker(rank=2), "hidden").apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'product'
    """

    rank: Rank = 1
    residual: ResidualCount = 0

    ABOUT = About(
        name="kronecker",
        family=projection.FAMILY,
        summary="a sum of Kronecker products of two small matrices",
        paper="Van Loan, Pitsianis 1993; Zhou et al. 2015, arXiv 1507.05775",
        layers=projection.LAYERS,
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The largest number of products that fits, up to the full rank."""
        outer = math.prod(projection.divisor(size, math.isqrt(size)) for size in (shape[0], math.prod(shape[1:])))
        rank = min(int(fraction * math.prod(shape) / (outer + math.prod(shape) // outer)), outer)
        return cls(rank=rank) if rank else None

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The factors, by the truncated SVD, and the correction; refused for a prime side, and where they are no smaller."""
        rows_OI = projection.matrix(weight, site)
        sides = [projection.divisor(size, math.isqrt(size)) for size in rows_OI.shape]
        if min(sides) == 1:
            raise NotApplicable(f"a side of {tuple(rows_OI.shape)} is prime: it cannot be split into two factors")
        high, wide = sides
        tensor = rows_OI.unflatten(1, (wide, -1)).unflatten(0, (high, -1)).transpose(1, 2)  # [a, c, b, d]
        rearranged = tensor.flatten(2).flatten(0, 1)
        full = min(rearranged.shape)
        rank = svd.rank_of(self.rank, full)
        if rank > full:
            raise NotApplicable(f"rank {rank} is above the full rank {full} of {tuple(rows_OI.shape)} rearranged")
        refuse_unless_fewer(rank * sum(rearranged.shape), weight, f"a sum of {rank} Kronecker products")
        u, s_R, v = svd.truncated(rearranged, rank)
        root_R = s_R.sqrt()
        left_ARC = (u * root_R).unflatten(0, (high, wide)).transpose(1, 2)
        right_RBD = (root_R[:, None] * v).unflatten(1, tuple(tensor.shape[2:]))
        form = Product.of(KRONECKER, [left_ARC, right_RBD], weight.shape)
        return projection.finished(form, weight, self.residual, f"a sum of {rank} Kronecker products")
