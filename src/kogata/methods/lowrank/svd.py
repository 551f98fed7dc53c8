"""Truncated singular value decomposition: W ≈ U V with r columns and rows.

Sainath et al., ICASSP 2013; Denton et al., NeurIPS 2014 (1404.0736), section 3.2:
    W = P Σ Qᵀ  →  U = P_r Σ_r^½,  V = Σ_r^½ Q_rᵀ,  ‖W − UV‖² = Σ_{i>r} σ_i²,
the least over all matrices of rank r (Eckart and Young, 1936). A convolution is the matrix [outputs, inputs · kernel].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from kogata.errors import NotApplicable, UsageError
from kogata.forms import Form, Product, Role
from kogata.forms.product import PAIR
from kogata.job import Site
from kogata.method import About, WeightMethod
from kogata.stats import Stats


@final
@dataclass(frozen=True, kw_only=True)
class SVD(WeightMethod):
    """Two factors in place of a matrix. ``rank`` is a count (int ≥ 1) or a fraction of the full rank (float in (0, 1))."""

    rank: int | float

    ABOUT = About(
        name="svd",
        family="low rank",
        summary="a matrix becomes the product of two thinner ones",
        paper="Sainath et al. 2013; Denton et al. 2014, arXiv 1404.0736",
    )
    ACCEPTS = frozenset({Role.MATRIX})
    LEAVES = frozenset({Role.MATRIX})
    GRID: ClassVar[Mapping[str, tuple[float, ...]]] = {"rank": (0.1, 0.2, 0.3, 0.4, 0.5)}

    def __post_init__(self) -> None:
        fraction = isinstance(self.rank, float) and not self.rank.is_integer()
        if not self.rank > 0 or (fraction and self.rank >= 1):
            raise UsageError(f"svd: rank is {self.rank}; expected a whole number from 1, or a fraction of the full rank.")

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The best product of the given rank; refused where it would hold as many numbers as the weight."""
        rows_OI = weight.flatten(1)
        full = min(rows_OI.shape)
        rank = int(self.rank) if self.rank >= 1 else max(1, round(self.rank * full))
        if rank * sum(rows_OI.shape) >= rows_OI.numel():
            raise NotApplicable(f"rank {rank} of {full} holds no fewer numbers than the matrix {tuple(rows_OI.shape)}")
        u_OR, s_R, v_RI = torch.linalg.svd(rows_OI, full_matrices=False)
        root_R = s_R[:rank].sqrt()
        return Product.of(PAIR, [u_OR[:, :rank] * root_R, root_R[:, None] * v_RI[:rank]], weight.shape)
