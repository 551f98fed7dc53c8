"""Entropy-constrained scalar quantization: share values so that the loss and the entropy-coded size are small together.

Choi, El-Khamy, Lee, "Towards the Limit of Network Quantization", ICLR 2017 (1612.01543), equations 12 and 13:
    J = Σ_i h_i (w_i − c_k(i))² − λ Σ_i log2 p_k(i),
    k(i) = argmin_k h_i (w_i − c_k)² − λ log2 p_k,   c_k = Σ h w / Σ h over cluster k,   p_k its share of the weights,
repeated until no weight moves. h is the diagonal of the Fisher information, in one unit for all layers.

The paper has one table for all layers, whose J is minimized jointly. Here each layer has a table of its own, and its own p, for
each layer's indices are coded by themselves; the joint problem is then Σ_layers J_layer with one λ, which falls apart into
the layers. One λ means that a bit more would lower the loss as much in any layer as in any other: the best way to spend
``bits`` on average. It is found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from kogata import calibrate, surgery
from kogata.errors import NotApplicable, UsageError
from kogata.forms import Form, Role
from kogata.job import Job, Site
from kogata.method import About, WeightMethod
from kogata.methods.sharing import scalar
from kogata.stats import Stat, Stats

PIECE = 1 << 22  # costs of (weight, centroid) pairs computed at a time
HALVINGS = 20  # of the interval of log λ


@final
@dataclass(frozen=True, kw_only=True)
class ECSQ(WeightMethod):
    """Share at most ``clusters`` values in each layer, so that all indices together have ``bits`` of entropy for each weight.

    ``bits`` is the mean over the weights of all selected layers; layers that the loss feels most get more. If k-means with
    ``clusters`` centroids needs no more anyway, then that is the result. Kept values of a mask count, pruned weights do not.
    """

    bits: float
    clusters: int = 64

    ABOUT = About(
        name="ecsq",
        family="sharing",
        summary="shared values chosen for loss and entropy together, over all layers",
        paper="Choi et al. 2017, arXiv 1612.01543",
    )
    NEEDS = frozenset({Stat.FISHER})
    ACCEPTS = frozenset({Role.MATRIX, Role.VALUES})
    LEAVES = frozenset({Role.TABLE})
    GRID: ClassVar[Mapping[str, tuple[float, ...]]] = {"bits": (1.5, 2.0, 2.5, 3.0, 3.5, 4.0)}

    def __post_init__(self) -> None:
        if not 0 < self.bits < math.inf:
            raise UsageError(f"ecsq: bits is {self.bits}; expected a mean entropy above 0, such as 2.5.")
        if not 1 <= self.clusters <= 2**15:
            raise UsageError(f"ecsq: clusters is {self.clusters}; expected 1 to 32,768.")

    def apply(self, job: Job) -> Job:
        """Find the one λ for all selected layers, then quantize each with it."""
        return AtPenalty(penalty=self._penalty(job), clusters=self.clusters).apply(job)

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The layer as if it were the only one."""
        parts = [Part(weight, scalar.importance(weight, stats.fisher), self.clusters)]
        return AtPenalty(penalty=smallest(parts, self.bits), clusters=self.clusters).encode(weight, site, stats)

    def _penalty(self, job: Job) -> float:
        """The λ for all leaves of all selected layers."""
        parts = list[Part]()
        for site, found in calibrate.gather(job, surgery.selected(job), self.NEEDS, job.model):
            root = surgery.form_at(job.model, site)
            for path, leaf, _ in surgery.leaves(root, site):
                if leaf.role in self.ACCEPTS:
                    weight = leaf.values.detach().float().cpu()
                    try:
                        parts.append(Part(weight, scalar.importance(weight, found.of(root, path).fisher), self.clusters))
                    except NotApplicable:
                        continue  # the report will say so
        return smallest(parts, self.bits) if parts else 0.0


@final
@dataclass(frozen=True, kw_only=True)
class AtPenalty(WeightMethod):
    """ECSQ of each layer with a given λ, the loss that one bit is worth; 0 is Hessian-weighted k-means."""

    penalty: float
    clusters: int

    ABOUT = ECSQ.ABOUT
    NEEDS = ECSQ.NEEDS
    ACCEPTS = ECSQ.ACCEPTS
    LEAVES = ECSQ.LEAVES

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """Indices into sorted centroids."""
        part = Part(weight, scalar.importance(weight, stats.fisher), self.clusters)
        index, centroids = part.quantized(self.penalty)
        return scalar.codebook(weight, index, centroids.to(weight.dtype))


class Part:
    """The weights of one layer, flat float64, with their importance and the codebooks to start from.

    The steps stop at the nearest minimum of J, and clusters only die. So they start from k-means with ``clusters`` centroids,
    with half as many, and so on, and the least J counts.
    """

    def __init__(self, weight: Tensor, importance: Tensor, clusters: int) -> None:
        self.values, self.importance = weight.flatten().double(), importance
        sizes = [clusters >> shift for shift in range(clusters.bit_length())]
        self.starts = [scalar.clustered(self.values, importance, size).float().double().unique() for size in sizes]

    def quantized(self, penalty: float) -> tuple[Tensor, Tensor]:
        """Index of each weight and centroids of least J, clusters that died out left away."""
        if penalty == 0:
            return scalar.nearest(self.values, self.starts[0]), self.starts[0]
        found = [self._descended(start, penalty) for start in self.starts]
        return min(found, key=lambda result: self._objective(*result, penalty))

    def _descended(self, centroids: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        """The steps from one start, until no weight moves."""
        index = scalar.nearest(self.values, centroids)
        for _ in range(scalar.STEPS):
            used, index = index.unique(return_inverse=True)
            mass = torch.zeros(len(used), dtype=torch.float64).index_add_(0, index, self.importance)
            centroids = torch.zeros_like(mass).index_add_(0, index, self.importance * self.values) / mass
            price = -penalty * (torch.bincount(index) / len(index)).log2()
            found = self._cheapest(centroids, price)
            if torch.equal(found, index):
                break
            index = found
        return index, centroids

    def _cheapest(self, centroids: Tensor, price: Tensor) -> Tensor:
        """argmin_k h (w − c_k)² + price_k of each weight."""
        rows = max(1, PIECE // len(centroids))
        pairs = zip(self.values.split(rows), self.importance.split(rows), strict=True)
        return torch.cat([torch.addcmul(price, h[:, None], (w[:, None] - centroids).square_()).argmin(1) for w, h in pairs])

    def _objective(self, index: Tensor, centroids: Tensor, penalty: float) -> float:
        error = (self.importance * (self.values - centroids[index]).square()).sum()
        return float(error) + penalty * entropy(index)


def entropy(index: Tensor) -> float:
    """Bits of all indices together."""
    counts = torch.bincount(index).double()
    return float(-torch.xlogy(counts, counts / len(index)).sum() / math.log(2))


def smallest(parts: Sequence[Part], bits: float) -> float:
    """The smallest λ at which the indices of all parts together need at most ``bits`` a weight, to a few per mille."""
    budget = bits * sum(len(part.values) for part in parts)

    def fits(penalty: float) -> bool:
        return sum(entropy(part.quantized(penalty)[0]) for part in parts) <= budget

    if fits(0.0):
        return 0.0
    # at high λ each layer is one cluster; there the price of a bit is of the order of the variance that it could save
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
