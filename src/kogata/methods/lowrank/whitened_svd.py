"""Whitened SVD: the approximation of rank r that changes the layer's outputs on the calibration data least.

Chen et al., "DRONE", NeurIPS 2021; Wang et al., "SVD-LLM", ICLR 2025 (2403.12403), section 3.1; for convolutions Zhang et al.,
2015 (1505.06798), section 2.1. With inputs X, G = XᵀX / rows = S Sᵀ and the SVD W S = P Σ Qᵀ:
    ‖X (W − W̃)ᵀ‖² / rows = ‖(W − W̃) S‖² ≥ Σ_{i>r} σ_i²,   with equality for  W̃ = P_r Σ_r Q_rᵀ S⁻¹ = P_r P_rᵀ W.
Neither S nor its inverse is needed: the columns of P are the eigenvectors of W G Wᵀ, with the eigenvalues σ². G may be
singular. The inputs are those produced by the already compressed layers.

To compensate for the changes of these layers, a layer can aim at its outputs Y Wᵀ for the inputs Y in the original model. With
C = YᵀX / rows, the weight
    V = W (C + λ) (G + λ)⁻¹ = argmin ‖Y Wᵀ − X Vᵀ‖² / rows + λ ‖W − V‖²
then takes the place of W: the best approximation of rank r for Y Wᵀ is that of the least-squares solution.
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
    """Replace a matrix by two factors that minimize the error of the outputs on the calibration data.

    ``rank`` is a count (int ≥ 1) or a fraction of the full rank (float in (0, 1)). With ``correct``, each layer approximates
    the outputs that it had in the original model, which takes a second run of the calibration data. Weights that would not get
    smaller, or with inputs that cannot be seen, stay as they are.

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
        summary="two smaller matrices that preserve a layer's outputs on the calibration data",
        paper="Chen et al. 2021 (DRONE); Wang et al. 2025, arXiv 2403.12403",
        layers=(Kind.LINEAR, Kind.CONV, Kind.OTHER),
        needs=frozenset({Stat.GRAM}),
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The largest rank that fits."""
        rank = sizes.pair_rank(shape, fraction)
        return cls(rank=rank) if rank else None

    @property
    def needs(self) -> frozenset[Stat]:
        """The Gram matrices of the inputs; with ``correct`` also their products with the inputs in the original model."""
        return self.ABOUT.needs | {Stat.CROSS} if self.correct else self.ABOUT.needs

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The best approximation of the given rank; refused where the factors are no smaller than the weight."""
        rank = pair_rank(weight.flatten(1), self.rank)
        aim = corrected(weight, site, stats) if self.correct else weight
        _, basis_OO = spectrum(aim, site, stats)
        left_OR = basis_OO[:, :rank]
        pair = svd.balanced(left_OR, left_OR.T @ aim.flatten(1).double())
        return Product.of(PAIR, [factor.to(weight.dtype) for factor in pair], weight.shape)
