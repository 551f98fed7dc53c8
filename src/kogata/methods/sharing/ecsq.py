"""Entropy-constrained scalar quantization: share values so that the loss and the entropy-coded size are small together.

Choi, El-Khamy, Lee, "Towards the Limit of Network Quantization", ICLR 2017 (1612.01543), section 4:
    J = Σ_i h_i (w_i − c_k(i))² − λ Σ_i log2 p_k(i),
    k(i) = argmin_k h_i (w_i − c_k)² − λ log2 p_k,   c_k = Σ h w / Σ h over cluster k,   p_k its share of the weights,
in turn. h is the diagonal of the Fisher information, in one unit for all layers.

The paper has one table for all layers, whose J is minimized jointly. Here each layer has a table of its own, and its own p, for
each layer's indices are coded by themselves; the joint problem is then Σ_layers J_layer with one λ, which falls apart into
the layers. One λ means that a bit more would lower the loss as much in any layer as in any other: the best way to spend
``bits`` on average. It is found by bisection.
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

SAMPLE = 16_381  # weights of a layer that λ and the first centroids are found on; prime, so that they fall in all columns
ENOUGH = 1e-5  # of J: stop when a step gains less
PIECE = 1 << 18  # costs of (weight, centroid) pairs computed at a time
HALVINGS = 12  # of the interval of log λ


@final
@dataclass(frozen=True, kw_only=True)
class ECSQ(PlannedMethod[float]):
    """Share at most ``clusters`` values in each layer, so that all indices together have ``bits`` of entropy for each weight.

    ``bits`` is the mean over the weights of all selected layers; layers that the loss feels most get more. If k-means with
    ``clusters`` centroids needs no more anyway, then that is the result. Kept values of a mask count, pruned weights do not.

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
        summary="shared values chosen for loss and entropy together, over all layers",
        paper="Choi et al. 2017, arXiv 1612.01543",
        needs=frozenset({Stat.FISHER}),
        accepts=frozenset({Role.MATRIX, Role.VALUES}),
        leaves=frozenset({Role.TABLE}),
    )

    def decide(self, job: Job, leaves: Iterator[PlannedLeaf]) -> float:
        """The λ for all leaves together: the loss that one bit is worth."""
        parts = list[Part]()
        for leaf in leaves:
            try:
                parts.append(self._part(leaf.weight, leaf.stats))
            except NotApplicable:
                continue  # encoding will say so
        return smallest(parts, self.bits) if parts else 0.0

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The layer as if it were the only one."""
        return self.encode_planned(smallest([self._part(weight, stats)], self.bits), weight, site, stats)

    def encode_planned(self, plan: float, weight: Tensor, site: Site, stats: Stats) -> Form:
        """Indices and centroids of least J for the λ of the plan; 0 is Hessian-weighted k-means."""
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
    """Index of each weight, and value and price (−λ log2 p) of each cluster; J and the bits of all indices together."""

    index: Tensor
    centroids: Tensor
    price: Tensor
    objective: float
    bits: float


@dataclass(frozen=True)
class Part:
    """A sample of one layer: flat float64 weights, their importance, how many they stand for, codebooks to start from."""

    values: Tensor
    importance: Tensor
    count: int
    starts: Sequence[Tensor]

    @classmethod
    def of(cls, weight: Tensor, importance: Tensor, clusters: int) -> Part:
        """Evenly spaced weights, and k-means with ``clusters`` centroids, half as many, and so on.

        Steps stop at the nearest minimum of J, and clusters only die in them: the best of a few starts is better.
        """
        size = min(weight.numel(), SAMPLE)
        chosen = torch.arange(size) * weight.numel() // size
        values, importance = weight.flatten()[chosen].double(), importance[chosen]
        sizes = [clusters >> shift for shift in range(clusters.bit_length())]
        return cls(values, importance, weight.numel(), [scalar.clustered(values, importance, k) for k in sizes])

    def quantized(self, penalty: float) -> Quantized:
        """The result of least J."""
        found = [descended(self.values, self.importance, c, torch.zeros_like(c), penalty) for c in self.starts]
        return min(found, key=lambda result: result.objective)


def descended(values: Tensor, importance: Tensor, centroids: Tensor, price: Tensor, penalty: float) -> Quantized:
    """The steps of Choi et al. until they gain next to nothing; clusters that die out are left away."""
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
    """argmin_k h (w − c_k)² + price_k of each weight, and the sum of these least costs."""
    rows = max(1, PIECE // len(centroids))
    pairs = zip(values.split(rows), importance.split(rows), strict=True)
    least = [torch.addcmul(price, h[:, None], (w[:, None] - centroids).square_()).min(1) for w, h in pairs]
    return torch.cat([piece.indices for piece in least]), float(torch.stack([piece.values.sum() for piece in least]).sum())


def smallest(parts: Sequence[Part], bits: float) -> float:
    """The smallest λ at which the indices of all parts together need at most ``bits`` a weight, to about a per mille."""

    def fits(penalty: float) -> bool:
        needed = sum(part.quantized(penalty).bits / len(part.values) * part.count for part in parts)
        return needed <= bits * sum(part.count for part in parts)

    if fits(0.0):
        return 0.0
    # where a bit costs as much as the variance it could save, each layer is about one cluster
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
