"""Weight sharing by Hessian-weighted k-means: weights to which the loss is sensitive lie closest to their centroid.

Choi, El-Khamy, Lee, "Towards the Limit of Network Quantization", ICLR 2017 (1612.01543), section 3:
    min Σ_k Σ_{w_i in c_k} h_ii |w_i − c_k|²,  so that  c_k = Σ h_ii w_i / Σ h_ii,
because at a minimum of the loss L the change of L is about ½ Σ h_ii (w_i − c_k)². The diagonal h of the Hessian is approximated
by that of the Fisher information, the mean squared gradient. It takes one pass, is never negative, and at such a minimum has
the same expectation. Its mean over the layer is added to every entry, which the paper does not do (``scalar.importance``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from kogata.calibration.stats import Stat, Stats
from kogata.forms import Form, Role
from kogata.job import Site
from kogata.methods.base.guards import Clusters
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels import sizes
from kogata.methods.sharing import scalar


@final
@dataclass(frozen=True, kw_only=True)
class HessianKMeans(WeightMethod):
    """Share ``clusters`` values (1 to 32,768) among all weights of a layer, minimizing the increase of the loss.

    The importance of a weight is its entry of the Fisher diagonal plus the mean of the diagonal over the layer: damping by the
    whole mean, so that a weight whose gradients happen to be 0 on the calibration data still counts.
    Raises DataError without a loss and targets.

    >>> from kogata import only
    >>> from kogata.methods import HessianKMeans
    >>> from kogata.testing.models import job_of
    >>> job = only(HessianKMeans(clusters=4), "hidden").apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'codebook'
    """

    clusters: Clusters

    ABOUT = About(
        name="hessian-k-means",
        family="sharing",
        summary="k-means in which weights are weighted by the curvature of the loss",
        paper="Choi et al. 2017, arXiv 1612.01543",
        needs=frozenset({Stat.FISHER}),
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
        centroids = scalar.clustered(values, scalar.importance(weight, stats.fisher), self.clusters).to(values.dtype).unique()
        return scalar.codebook(weight, scalar.nearest(values, centroids), centroids)
