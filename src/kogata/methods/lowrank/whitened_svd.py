"""Whitened SVD: the matrix of rank r that changes a layer's outputs least, on the inputs that reach it.

Chen et al., "DRONE", NeurIPS 2021; Wang et al., "SVD-LLM", ICLR 2025 (2403.12403), section 3.1; for convolutions Zhang et al.,
2015 (1505.06798), section 2.1. With inputs X, G = XᵀX / rows = S Sᵀ and the SVD W S = P Σ Qᵀ:
    ‖X (W − W̃)ᵀ‖² / rows = ‖(W − W̃) S‖² ≥ Σ_{i>r} σ_i²,   with equality for  W̃ = P_r Σ_r Q_rᵀ S⁻¹ = P_r P_rᵀ W.
So neither S nor its inverse is needed: P holds the eigenvectors of W G Wᵀ, whose eigenvalues are σ². Inputs that span less
than all columns do no harm. The inputs are those that the layers compressed before it leave.

To make up for what these have changed, a layer can aim at the outputs Y Wᵀ that it had on the inputs Y of the net before them.
With C = YᵀX / rows, the weight
    V = W (C + λ) (G + λ)⁻¹ = argmin ‖Y Wᵀ − X Vᵀ‖² / rows + λ ‖W − V‖²
then takes the place of W: the best of rank r for Y Wᵀ are the leading singular vectors of what least squares reaches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from kogata.calibration.stats import Stat, Stats
from kogata.forms import Form, Product, Role
from kogata.forms.product import PAIR
from kogata.job import Kind, Site
from kogata.methods.base.guards import Rank
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels import sizes, svd
from kogata.methods.kernels.whitening import corrected, spectrum
from kogata.methods.lowrank.svd import pair_rank


@final
@dataclass(frozen=True, kw_only=True)
class WhitenedSVD(WeightMethod):
    """Two factors in place of a matrix, for the least error of the outputs on the calibration data.

    ``rank`` is that of SVD: a count (int ≥ 1) or a fraction of the full rank (float in (0, 1)). With ``correct`` a layer aims
    at the outputs that it had before any layer was changed, at the cost of a second run of the calibration data.

    >>> from kogata import only
    >>> from kogata.methods import WhitenedSVD
    >>> from kogata.testing.models import job_of
    >>> job = only(WhitenedSVD(rank=4), "hidden").apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'product'
    """

    rank: Rank
    correct: bool = False

    ABOUT = About(
        name="whitened-svd",
        family="low rank",
        summary="two thinner matrices that keep a layer's outputs on the calibration data",
        paper="Chen et al. 2021 (DRONE); Wang et al. 2025, arXiv 2403.12403",
        layers=(Kind.LINEAR, Kind.CONV, Kind.OTHER),
        needs=frozenset({Stat.GRAM}),
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The largest rank of two factors."""
        rank = sizes.pair_rank(shape, fraction)
        return cls(rank=rank) if rank else None

    @property
    def needs(self) -> frozenset[Stat]:
        """The grams of the inputs, and to correct also their products with those of the net before."""
        return self.ABOUT.needs | {Stat.CROSS} if self.correct else self.ABOUT.needs

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The best product of the given rank; refused where it would hold as many numbers as the weight."""
        rank = pair_rank(weight.flatten(1), self.rank)
        aim = corrected(weight, site, stats) if self.correct else weight
        _, basis_OO = spectrum(aim, site, stats)
        left_OR = basis_OO[:, :rank]
        pair = svd.balanced(left_OR, left_OR.T @ aim.flatten(1).double())
        return Product.of(PAIR, [factor.to(weight.dtype) for factor in pair], weight.shape)
