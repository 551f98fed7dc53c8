"""Weight sharing by k-means: every weight of a layer becomes one of k centroids.

Gong, Liu, Yang, Bourdev, "Compressing Deep Convolutional Networks using Vector Quantization", 2014 (1412.6115), eq. 3;
Han, Mao, Dally, "Deep Compression", ICLR 2016 (1510.00149), section 3:
    min Σ_k Σ_{w in c_k} |w − c_k|².
In one dimension clusters are intervals, and dynamic programming finds the optimal ones (``scalar.py``). Lloyd's algorithm with
linear initialization would leave some clusters empty, which hurts small first layers most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.forms import Form, Role
from kogata.job import Site
from kogata.methods.base.guards import Clusters
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels import sizes
from kogata.methods.sharing import scalar


@final
@dataclass(frozen=True, kw_only=True)
class KMeans(WeightMethod):
    """Share ``clusters`` values (1 to 32,768) among all weights of a layer. The centroids are trainable afterwards.

    >>> from kogata import only
    >>> from kogata.methods import KMeans
    >>> from kogata.testing.models import job_of
    >>> job = only(KMeans(clusters=4), "hidden").apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'codebook'
    """

    clusters: Clusters

    ABOUT = About(
        name="k-means",
        family="sharing",
        summary="every weight is one of k shared, trainable centroids",
        paper="Gong et al. 2014, arXiv 1412.6115; Han et al. 2016, arXiv 1510.00149",
        accepts=frozenset({Role.MATRIX, Role.VALUES}),
        leaves=frozenset({Role.TABLE}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The largest number of clusters, a power of two, at which indices and table fit."""
        clusters = sizes.clusters(shape, fraction)
        return None if clusters is None else cls(clusters=clusters)

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """Indices into sorted centroids; centroids without members are dropped."""
        values = weight.flatten()
        centroids = scalar.clustered(values, torch.ones_like(values), self.clusters).to(values.dtype).unique()
        return scalar.codebook(weight, scalar.nearest(values, centroids), centroids)
