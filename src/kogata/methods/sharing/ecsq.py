"""Entropy-constrained scalar quantization: shared values that trade the loss against the entropy-coded size.

Choi, El-Khamy, Lee, "Towards the Limit of Network Quantization", ICLR 2017 (1612.01543), section 4:
    J = Σ_i h_i (w_i − c_k(i))² − λ Σ_i log2 p_k(i),
    k(i) = argmin_k h_i (w_i − c_k)² − λ log2 p_k,   c_k = Σ h w / Σ h over cluster k,   p_k its share of the weights,
by alternating minimization. h is the diagonal of the Fisher information, in the same unit for all layers, plus its mean over
the layer (``scalar.importance``).

The paper has one table for all layers. Here each layer has its own table and its own p, because the indices of each layer are
coded separately. The joint problem is then Σ_layers J_layer with a common λ, and it separates into layers. With a common λ, one
more bit would lower the loss by the same amount in every layer, which is the optimal allocation for a mean of ``bits``. λ is
found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, final

import torch
from torch import Tensor

from kogata.calibration.stats import Stat, Stats
from kogata.errors import NotApplicable
from kogata.forms import Form, Role
from kogata.job import Job, Site
from kogata.methods.base.guards import Clusters
from kogata.methods.base.method import About
from kogata.methods.base.planned import PlannedLeaf, PlannedMethod
from kogata.methods.sharing import scalar
from kogata.methods.sharing.hessian_kmeans import HessianKMeans
from kogata.settings import Range

SAMPLE = 16_381  # sampled weights of a layer for finding λ and initial centroids; prime, to spread them over all columns
ENOUGH = 1e-5  # stop when a step lowers J by less than this fraction
PIECE = 1 << 18  # costs of (weight, centroid) pairs computed at a time
HALVINGS = 12  # bisection steps for log λ


@final
@dataclass(frozen=True, kw_only=True)
class ECSQ(PlannedMethod[float]):
    """Share at most ``clusters`` values (1 to 32,768) in each layer, with indices of at most ``bits`` of entropy per weight.

    ``bits``, above 0, is the mean over the weights of all selected layers; layers to which the loss is most sensitive get more.
    Pruned weights do not count. The importance of a weight is its entry of the Fisher diagonal plus the layer's mean of it. If
    Hessian-weighted k-means with ``clusters`` centroids already needs no more bits, it is used.
    Raises DataError without a loss and targets.

    >>> from kogata import only
    >>> from kogata.methods import ECSQ
    >>> from kogata.testing.models import job_of
    >>> job = only(ECSQ(bits=1.5, clusters=4), "out").apply(job_of("conv"))
    >>> job.model.out.parametrizations.weight[0].describe()
    'codebook'
    """

    bits: Annotated[float, Range(gt=0, example=2.5)]
    clusters: Clusters = 32

    ABOUT = About(
        name="ecsq",
        family="sharing",
        summary="shared values that minimize loss and entropy together, over all layers",
        paper="Choi et al. 2017, arXiv 1612.01543",
        needs=frozenset({Stat.FISHER}),
        accepts=frozenset({Role.MATRIX, Role.VALUES}),
        leaves=frozenset({Role.TABLE}),
    )

    def decide(self, job: Job, leaves: Iterator[PlannedLeaf]) -> float:
        """The common λ of all leaves: the increase of the loss that saving one bit is worth."""
        parts = list[Part]()
        for leaf in leaves:
            try:
                parts.append(self._part(leaf.weight, leaf.stats))
            except NotApplicable:
                continue  # encode_planned raises it again, and the report shows the reason
        return smallest(parts, self.bits) if parts else 0.0

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """Encode the layer by itself, with its own λ."""
        return self.encode_planned(smallest([self._part(weight, stats)], self.bits), weight, site, stats)

    def encode_planned(self, plan: float, weight: Tensor, site: Site, stats: Stats) -> Form:
        """Indices and centroids that minimize J for the λ of the plan; λ = 0 is Hessian-weighted k-means."""
        if plan == 0:
            return HessianKMeans(clusters=self.clusters).encode(weight, site, stats)
        values, importance = weight.flatten().double(), scalar.importance(weight, stats.fisher)
        found = Part.of(weight, importance, self.clusters).quantized(plan)
        found = descended(values, importance, found.centroids, found.price, plan)
        return scalar.codebook(weight, found.index, found.centroids.to(weight.dtype))

    def _part(self, weight: Tensor, stats: Stats) -> Part:
        return Part.of(weight, scalar.importance(weight, stats.fisher), self.clusters)


@dataclass(frozen=True)
class Quantized:
    """The index of each weight, the centroid and price (−λ log2 p) of each cluster, J, and the total bits of the indices."""

    index: Tensor
    centroids: Tensor
    price: Tensor
    objective: float
    bits: float


@dataclass(frozen=True)
class Part:
    """A sample of the weights of one layer: flat float64 values, their importance, and several initial codebooks.

    ``count`` is the number of weights of the layer.
    """

    values: Tensor
    importance: Tensor
    count: int
    starts: Sequence[Tensor]

    @classmethod
    def of(cls, weight: Tensor, importance: Tensor, clusters: int) -> Part:
        """Sample evenly spaced weights; initialize by k-means with ``clusters`` centroids, half as many, and so on.

        The descent ends in a local minimum of J and can only remove clusters, so several initial codebooks are tried.
        """
        size = min(weight.numel(), SAMPLE)
        chosen = torch.arange(size) * weight.numel() // size
        values, importance = weight.flatten()[chosen].double(), importance[chosen]
        sizes = [clusters >> shift for shift in range(clusters.bit_length())]
        return cls(values, importance, weight.numel(), [scalar.clustered(values, importance, k) for k in sizes])

    def quantized(self, penalty: float) -> Quantized:
        """The result with the least J over all initial codebooks."""
        found = [descended(self.values, self.importance, c, torch.zeros_like(c), penalty) for c in self.starts]
        return min(found, key=lambda result: result.objective)


def descended(values: Tensor, importance: Tensor, centroids: Tensor, price: Tensor, penalty: float) -> Quantized:
    """Alternate the steps of Choi et al. until J hardly falls. Clusters that become empty are removed."""
    found, index, least = cheapest(values, importance, centroids, price)[0], torch.empty(0), math.inf
    for _ in range(scalar.STEPS):
        used, index = found.unique(return_inverse=True)
        mass = torch.zeros(len(used), dtype=torch.float64).index_add_(0, index, importance)
        centroids = torch.zeros_like(mass).index_add_(0, index, importance * values) / mass
        price = -penalty * (torch.bincount(index) / len(index)).log2()
        found, objective = cheapest(values, importance, centroids, price)
        if least - objective <= ENOUGH * objective:
            break
        least = objective
    counts = torch.bincount(index).double()
    bits = float(-torch.xlogy(counts, counts / len(index)).sum() / math.log(2))
    error = float((importance * (values - centroids[index]).square()).sum())
    return Quantized(index, centroids, price, error + penalty * bits, bits)


def cheapest(values: Tensor, importance: Tensor, centroids: Tensor, price: Tensor) -> tuple[Tensor, float]:
    """argmin_k h (w − c_k)² + price_k for each weight, and the sum of these minima."""
    rows = max(1, PIECE // len(centroids))
    pairs = zip(values.split(rows), importance.split(rows), strict=True)
    least = [torch.addcmul(price, h[:, None], (w[:, None] - centroids).square_()).min(1) for w, h in pairs]
    return torch.cat([piece.indices for piece in least]), float(torch.stack([piece.values.sum() for piece in least]).sum())


def smallest(parts: Sequence[Part], bits: float) -> float:
    """The smallest λ, to about 0.1 %, at which the indices of all parts together need at most ``bits`` per weight."""

    def fits(penalty: float) -> bool:
        needed = sum(part.quantized(penalty).bits / len(part.values) * part.count for part in parts)
        return needed <= bits * sum(part.count for part in parts)

    if fits(0.0):
        return 0.0
    # if a bit costs as much as the variance that it could save, each layer has about one cluster
    high = max(float((part.importance * part.values.square()).mean()) for part in parts)
    while not fits(high):
        high *= 16
    low = high
    while fits(low):
        low /= 16
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
