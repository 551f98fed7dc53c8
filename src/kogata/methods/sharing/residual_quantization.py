"""Residual quantization: a vector is the sum of one centroid from each of several codebooks.

Gong, Liu, Yang, Bourdev, "Compressing Deep Convolutional Networks using Vector Quantization", 2014 (1412.6115), section 3.2:
    w ≈ c¹ + c² + … + cᵗ,  cˢ the centroid nearest to w − c¹ − … − cˢ⁻¹, from k-means of these residuals.
The paper quantizes whole rows, which needs large tables. Here rows may also be cut into sub-vectors, as in product
quantization.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self, final

import torch
from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.forms import Form, Role
from kogata.forms.combined import Sum
from kogata.forms.vectors import Vectors
from kogata.job import Site
from kogata.methods.base.guards import Clusters, Count
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels import sizes
from kogata.methods.sharing import subvectors
from kogata.settings import Range


@final
@dataclass(frozen=True, kw_only=True)
class ResidualQuantization(WeightMethod):
    """Sum one of ``clusters`` shared vectors (1 to 32,768) from each of ``stages`` tables (2 or more).

    A vector has ``length`` columns; None means the whole row. Weights with no more rows than ``clusters`` stay as they are.

    >>> from kogata import only
    >>> from kogata.methods import ResidualQuantization
    >>> from kogata.testing.models import job_of
    >>> job = only(ResidualQuantization(clusters=4, stages=2, length=4), "hidden").apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'sum(vectors, vectors)'
    """

    clusters: Clusters
    stages: Annotated[int, Range(ge=2)] = 2
    length: Count | None = None

    ABOUT = About(
        name="residual-quantization",
        family="sharing",
        summary="rows are sums of shared, trainable vectors, one from each of several tables",
        paper="Gong et al. 2014, arXiv 1412.6115",
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.TABLE}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """Two stages, with the number and length (2, 4 or 8) of vectors that use most of the size."""
        found = sizes.vectors(shape, fraction, stages=2)
        return None if found is None else cls(clusters=found[0], stages=2, length=found[1])

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """A sum of one vector-quantized form for each stage."""
        residual, terms = weight, list[Form]()
        for _ in range(self.stages):
            points = subvectors.split(residual, self.length or weight[0].numel(), self.clusters)
            terms.append(Vectors.of(*subvectors.clustered(points, self.clusters), weight.shape))
            with torch.no_grad():
                residual = residual - terms[-1].dense()
        return Sum(terms)
