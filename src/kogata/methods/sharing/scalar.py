"""One-dimensional clustering of weighted values, for methods with one table of shared values for each layer.

    min Σ_i h_i (w_i − c_k(i))²,  h_i ≥ 0.
The weights h do not affect which centroid is nearest, so clusters are intervals, and dynamic programming finds the optimal
ones. More than ``BINS`` values are first grouped into that many bins of equal count; Lloyd's algorithm then refines the result
on all values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kogata.errors import NotApplicable
from kogata.forms import Codebook

BINS = 4096
STEPS = 300
DAMPING = 1.0


def codebook(weight: Tensor, index: Tensor, centroids: Tensor) -> Codebook:
    """A codebook of the shape of ``weight``. Centroids (ascending) that no index refers to are dropped."""
    used, index = torch.unique(index, return_inverse=True)
    return Codebook.of(index.reshape(weight.shape), centroids[used])


def importance(weight: Tensor, fisher: Tensor | None) -> Tensor:
    """The importance h of each entry of ``weight``, flat float64 and positive. Raises NotApplicable without a Fisher diagonal.

    It is the Fisher diagonal plus ``DAMPING`` times its mean. In a trained network the gradients of most weights are nearly 0
    on nearly all samples. A small sum over a few batches is therefore no proof that a weight may change freely.
    """
    if fisher is None or fisher.shape != weight.shape:
        raise NotApplicable("no squared gradients were gathered for it, so the importance of its weights is unknown")
    h = fisher.double().flatten()
    if not float(h.sum()) > 0:
        raise NotApplicable("all its gradients are 0 on the calibration data, so the importance of its weights is unknown")
    return h + DAMPING * h.mean()


def clustered(values: Tensor, weights: Tensor, clusters: int) -> Tensor:
    """At most ``clusters`` ascending float64 centroids of ``values`` (flat), weighted by ``weights`` (flat, positive)."""
    ordered, order = values.double().sort()
    weights = weights.double()[order]
    return refined(ordered, weights, optimal(ordered, weights, clusters))


def nearest(values: Tensor, centroids: Tensor) -> Tensor:
    """The index of the nearest of the ascending ``centroids`` for each value; ties go to the lower one."""
    return torch.bucketize(values, (centroids[1:] + centroids[:-1]) / 2)


def optimal(ordered: Tensor, weights: Tensor, clusters: int) -> Tensor:
    """The optimal ascending centroids of ascending float64 values; exact for up to ``BINS`` distinct values."""
    from kogata.methods.kernels import intervals  # numba takes half a second to import

    points, group = ordered.unique_consecutive(return_inverse=True)
    if len(points) > BINS:
        group = torch.arange(len(ordered)) * BINS // len(ordered)
    mass = torch.zeros(int(group[-1]) + 1, dtype=torch.float64).index_add_(0, group, weights)
    points = torch.zeros_like(mass).index_add_(0, group, weights * ordered) / mass
    clusters = min(clusters, len(points))
    starts = torch.from_numpy(intervals.split(points.numpy(), mass.numpy(), clusters))
    edges = torch.cat([starts, starts.new_full((1,), len(points))])
    return sums(mass * points)[edges].diff() / sums(mass)[edges].diff()


def refined(ordered: Tensor, weights: Tensor, centroids: Tensor) -> Tensor:
    """Lloyd's algorithm on all ascending values until no assignment changes, for at most ``STEPS`` steps."""
    mass, total = sums(weights), sums(weights * ordered)
    edges = torch.empty(0)
    for _ in range(STEPS):
        inner = torch.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2, right=True)
        found = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), len(ordered))])
        if torch.equal(found, edges):
            break
        edges = found
        # an empty cluster keeps its centroid; its mass is exactly 0, because both of its edges are the same
        held = mass[edges].diff()
        centroids = torch.where(held > 0, total[edges].diff() / held, centroids)
    return centroids


def sums(values: Tensor) -> Tensor:
    """Prefix sums with a leading 0, so that differences are sums over intervals."""
    return torch.cat([values.new_zeros(1), values.cumsum(0)])
