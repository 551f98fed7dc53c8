"""Truncated singular value decomposition: W ≈ U V, where U has r columns and V has r rows.

Sainath et al., ICASSP 2013; Denton et al., NeurIPS 2014 (1404.0736), section 3.2:
    W = P Σ Qᵀ  →  U = P_r Σ_r^½,  V = Σ_r^½ Q_rᵀ,  ‖W − UV‖² = Σ_{i>r} σ_i²,
the minimum over all matrices of rank r (Eckart and Young, 1936). A convolution is the matrix [outputs, inputs · kernel].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable
from kogata.forms import Form, Role
from kogata.job import Site
from kogata.methods.base.guards import Rank, refuse_unless_finite
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels import sizes, svd


@final
@dataclass(frozen=True, kw_only=True)
class SVD(WeightMethod):
    """Replace a matrix by two factors of rank ``rank``, a count (int ≥ 1) or a fraction of the full rank (float in (0, 1)).

    A weight that would not get smaller stays as it is. Raises DataError when a weight is NaN or infinite.

    >>> from kogata import only
    >>> from kogata.methods import SVD
    >>> from kogata.testing.models import job_of
    >>> job = only(SVD(rank=4), "hidden").apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'product'
    """

    rank: Rank

    ABOUT = About(
        name="svd",
        family="low rank",
        summary="a matrix becomes the product of two smaller ones",
        paper="Sainath et al. 2013; Denton et al. 2014, arXiv 1404.0736",
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The largest rank that fits."""
        rank = sizes.pair_rank(shape, fraction)
        return cls(rank=rank) if rank else None

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The best approximation of the given rank; refused where the factors are no smaller than the weight."""
        rows_OI = weight.flatten(1)
        rank = pair_rank(rows_OI, self.rank)
        refuse_unless_finite(weight, site)
        return svd.pair(rows_OI, rank, weight.shape)


def pair_rank(rows_OI: Tensor, rank: float) -> int:
    """The rank of two factors as a count. Raises NotApplicable when the factors are no smaller than the matrix."""
    full = min(rows_OI.shape)
    count = svd.rank_of(rank, full)
    if count * sum(rows_OI.shape) >= rows_OI.numel():
        raise NotApplicable(f"rank {count} of {full} holds no fewer numbers than the matrix {tuple(rows_OI.shape)}")
    return count
