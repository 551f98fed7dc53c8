"""Product quantization: rows are cut into sub-vectors, each one of k shared vectors.

Gong, Liu, Yang, Bourdev, "Compressing Deep Convolutional Networks using Vector Quantization", 2014 (1412.6115), section 3.2:
    W = [W¹, …, Wˢ],  min Σ_o ‖wˢ_o − cˢ_k(o)‖²  for each sub-matrix Wˢ of d columns,
so that each of the S sub-vectors of a row takes log2 k bits. All rows share S tables of k vectors. The rows of a convolution
are its filters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.forms import Form, Role
from kogata.forms.vectors import Vectors
from kogata.job import Site
from kogata.methods.base.guards import Clusters, Count
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels import sizes
from kogata.methods.sharing import subvectors


@final
@dataclass(frozen=True, kw_only=True)
class ProductQuantization(WeightMethod):
    """Cut rows into sub-vectors of ``length`` and share ``clusters`` vectors among all rows, for each position in the row.

    ``clusters`` is 1 to 32,768 and ``length`` at least 1. The tables hold as many numbers as ``clusters`` rows, so the method
    pays off where a layer has many more rows than that. Weights with no more rows than ``clusters`` stay as they are.

    >>> from kogata import only
    >>> from kogata.methods import ProductQuantization
    >>> from kogata.testing.models import job_of
    >>> job = only(ProductQuantization(clusters=8, length=4), "hidden").apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'vectors'
    """

    clusters: Clusters
    length: Count

    ABOUT = About(
        name="product-quantization",
        family="sharing",
        summary="sub-vectors of each row are shared, trainable vectors",
        paper="Gong et al. 2014, arXiv 1412.6115",
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.TABLE}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The number and length (2, 4 or 8) of the vectors that use most of the size."""
        found = sizes.vectors(shape, fraction)
        return None if found is None else cls(clusters=found[0], length=found[1])

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The nearest centroid of each sub-vector."""
        index, table = subvectors.clustered(subvectors.split(weight, self.length, self.clusters), self.clusters)
        return Vectors.of(index, table, weight.shape)
