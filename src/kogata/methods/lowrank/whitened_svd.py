"""Whitened SVD: the matrix of rank r that changes a layer's outputs least, on the inputs that reach it.

Chen et al., "DRONE", NeurIPS 2021; Wang et al., "SVD-LLM", ICLR 2025 (2403.12403), section 3.1; for convolutions Zhang et al.,
2015 (1505.06798), section 2.1. With inputs X, G = XᵀX / rows = S Sᵀ and the SVD W S = P Σ Qᵀ:
    ‖X (W − W̃)ᵀ‖² / rows = ‖(W − W̃) S‖² ≥ Σ_{i>r} σ_i²,   with equality for  W̃ = P_r Σ_r Q_rᵀ S⁻¹ = P_r P_rᵀ W.
So neither S nor its inverse is needed: P holds the eigenvectors of W G Wᵀ, whose eigenvalues are σ². Inputs that span less
than all columns do no harm. The inputs are those that the layers compressed before it leave.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from kogata.errors import NotApplicable
from kogata.forms import Form, Product, Role
from kogata.forms.product import PAIR
from kogata.job import Kind, Site
from kogata.method import About, WeightMethod
from kogata.methods.lowrank import factors
from kogata.methods.lowrank.svd import pair_rank
from kogata.stats import Stat, Stats

DAMPING = torch.finfo(torch.float32).eps  # of G's trace: below it G, a sum in float32, is noise, and the weight decides


@final
@dataclass(frozen=True, kw_only=True)
class WhitenedSVD(WeightMethod):
    """Two factors in place of a matrix, for the least error of the outputs on the calibration data.

    ``rank`` is that of SVD: a count (int ≥ 1) or a fraction of the full rank (float in (0, 1)).
    """

    rank: int | float

    ABOUT = About(
        name="whitened-svd",
        family="low rank",
        summary="two thinner matrices that keep a layer's outputs on the calibration data",
        paper="Chen et al. 2021 (DRONE); Wang et al. 2025, arXiv 2403.12403",
        layers=(Kind.LINEAR, Kind.CONV, Kind.OTHER),
    )
    NEEDS = frozenset({Stat.GRAM})
    ACCEPTS = frozenset({Role.MATRIX})
    LEAVES = frozenset({Role.MATRIX})
    GRID: ClassVar[Mapping[str, tuple[float, ...]]] = {"rank": (0.1, 0.2, 0.3, 0.4, 0.5)}

    def __post_init__(self) -> None:
        factors.check("whitened-svd", self.rank)

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The best product of the given rank; refused where it would hold as many numbers as the weight."""
        rank = pair_rank(weight.flatten(1), self.rank)
        _, basis_OO = spectrum(weight, site, stats)
        left_OR = basis_OO[:, :rank]
        pair = factors.balanced(left_OR, left_OR.T @ weight.flatten(1).double())
        return Product.of(PAIR, [factor.to(weight.dtype) for factor in pair], weight.shape)


def spectrum(weight: Tensor, site: Site, stats: Stats) -> tuple[Tensor, Tensor]:
    """The squared singular values of W S, largest first, and its left singular vectors ``[O, min(O, I)]``, in float64.

    Raises NotApplicable where the inputs of the weight cannot be seen as one matrix, DataError where it is not finite.
    """
    matrix_OI = weight.flatten(1).double()
    outputs, columns = matrix_OI.shape
    if stats.gram_GII is None or stats.gram_GII.shape[1] != columns:
        raise NotApplicable("its inputs could not be matched to the columns of this weight")
    if len(stats.gram_GII) > 1:
        raise NotApplicable("it is a grouped convolution, whose rows have no inputs in common")
    factors.refuse_unless_finite(weight, site)
    gram_II = stats.gram_GII[0].double()
    damping = max(DAMPING * float(gram_II.trace()), torch.finfo(torch.float32).tiny)
    gram_II = gram_II + damping * torch.eye(columns, dtype=gram_II.dtype)
    basis = torch.eye(outputs, dtype=gram_II.dtype)
    if outputs > columns:
        basis, matrix_OI = torch.linalg.qr(matrix_OI)  # the same column space, from as few rows as there are columns
    values, vectors = torch.linalg.eigh(matrix_OI @ gram_II @ matrix_OI.T)
    return values.clamp_min(0).flip(0), basis @ vectors.flip(1)
