"""Product quantization: every stretch of a few columns of a row is one of k shared vectors.

Gong, Liu, Yang, Bourdev, "Compressing Deep Convolutional Networks using Vector Quantization", 2014 (1412.6115), section 3.2:
    W = [W¹, …, Wˢ],  min Σ_o ‖wˢ_o − cˢ_k(o)‖²  for each sub-matrix Wˢ of d columns,
so that a row costs log2 k bits for each of its S sub-vectors, and S tables of k vectors are shared by all rows. The filters
of a convolution are its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import UsageError
from kogata.forms import Form, Role
from kogata.forms.vectors import Vectors
from kogata.job import Site
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.sharing import subvectors


@final
@dataclass(frozen=True, kw_only=True)
class ProductQuantization(WeightMethod):
    """Cut rows into sub-vectors of ``length`` and share ``clusters`` vectors among all rows, for each position in the row.

    Worth it where a layer has many more rows than ``clusters``, for the tables hold as many numbers as that many rows.
    """

    clusters: int
    length: int

    ABOUT = About(
        name="product-quantization",
        family="sharing",
        summary="short stretches of each row are shared, trainable vectors",
        paper="Gong et al. 2014, arXiv 1412.6115",
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.TABLE}),
    )
    GRID: ClassVar[Mapping[str, tuple[int, ...]]] = {"clusters": (8, 16, 32, 64, 256), "length": (2, 4, 8)}

    def __post_init__(self) -> None:
        if not 1 <= self.clusters <= 2**15:
            raise UsageError(f"product-quantization: clusters is {self.clusters}; expected 1 to 32,768.")
        if self.length < 1:
            raise UsageError(f"product-quantization: length is {self.length}; expected 1 or more columns.")

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The nearest centroid of each sub-vector."""
        index, table = subvectors.clustered(subvectors.split(weight, self.length, self.clusters), self.clusters)
        return Vectors.of(index, table, weight.shape)
