"""Residual quantization: a vector is the sum of one centroid from each of several codebooks.

Gong, Liu, Yang, Bourdev, "Compressing Deep Convolutional Networks using Vector Quantization", 2014 (1412.6115), section 3.2:
    w ≈ c¹ + c² + … + cᵗ,  cˢ the centroid nearest to w − c¹ − … − cˢ⁻¹, from k-means of these residuals.
The paper quantizes whole rows, whose tables are large; here rows may be cut into sub-vectors as in product quantization.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import UsageError
from kogata.forms import Form, Role
from kogata.forms.combined import Sum
from kogata.forms.vectors import Vectors
from kogata.job import Site
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.sharing import subvectors


@final
@dataclass(frozen=True, kw_only=True)
class ResidualQuantization(WeightMethod):
    """Share ``clusters`` vectors in each of ``stages`` tables; ``length`` columns make a vector, None means the whole row."""

    clusters: int
    stages: int = 2
    length: int | None = None

    ABOUT = About(
        name="residual-quantization",
        family="sharing",
        summary="rows are sums of shared, trainable vectors, one from each of several tables",
        paper="Gong et al. 2014, arXiv 1412.6115",
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.TABLE}),
    )
    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "clusters": (8, 16, 32, 64), "stages": (2, 3, 4), "length": (4, 8, 16, None),
    }  # fmt: skip

    def __post_init__(self) -> None:
        if not 1 <= self.clusters <= 2**15:
            raise UsageError(f"residual-quantization: clusters is {self.clusters}; expected 1 to 32,768.")
        if self.stages < 2:
            raise UsageError(
                f"residual-quantization: stages is {self.stages}; expected 2 or more; one is product-quantization."
            )
        if self.length is not None and self.length < 1:
            raise UsageError(f"residual-quantization: length is {self.length}; expected 1 or more columns, or null for rows.")

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """A sum of as many vector forms as there are stages."""
        residual, terms = weight, list[Form]()
        for _ in range(self.stages):
            points = subvectors.split(residual, self.length or weight[0].numel(), self.clusters)
            terms.append(Vectors.of(*subvectors.clustered(points, self.clusters), weight.shape))
            with torch.no_grad():
                residual = residual - terms[-1].dense()
        return Sum(terms)
