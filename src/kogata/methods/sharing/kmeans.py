"""Weight sharing by k-means: every weight of a layer becomes one of k centroids.

Gong, Liu, Yang, Bourdev, "Compressing Deep Convolutional Networks using Vector Quantization", 2014 (1412.6115), eq. 3;
Han, Mao, Dally, "Deep Compression", ICLR 2016 (1510.00149), section 3:
    min Σ_k Σ_{w in c_k} |w − c_k|².
In one dimension the clusters are intervals, and dynamic programming finds the best ones exactly, where Lloyd's steps from
a linear start lose centroids to empty intervals, which costs small first layers most (``scalar.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import UsageError
from kogata.forms import Form, Role
from kogata.job import Site
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.sharing import scalar


@final
@dataclass(frozen=True, kw_only=True)
class KMeans(WeightMethod):
    """Share ``clusters`` values among all weights of a layer; a later training step tunes the centroids."""

    clusters: int

    ABOUT = About(
        name="k-means",
        family="sharing",
        summary="every weight is one of k shared, trainable centroids",
        paper="Gong et al. 2014, arXiv 1412.6115; Han et al. 2016, arXiv 1510.00149",
        accepts=frozenset({Role.MATRIX, Role.VALUES}),
        leaves=frozenset({Role.TABLE}),
    )
    GRID: ClassVar[Mapping[str, tuple[int, ...]]] = {"clusters": (4, 8, 16, 32, 64, 256)}

    def __post_init__(self) -> None:
        if not 1 <= self.clusters <= 2**15:
            raise UsageError(f"k-means: clusters is {self.clusters}; expected 1 to 32,768.")

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """Indices into sorted centroids; centroids that no weight is nearest to are dropped."""
        values = weight.flatten()
        centroids = scalar.clustered(values, torch.ones_like(values), self.clusters).to(values.dtype).unique()
        return scalar.codebook(weight, scalar.nearest(values, centroids), centroids)
