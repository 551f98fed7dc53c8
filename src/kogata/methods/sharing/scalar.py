"""One-dimensional clustering of weighted values, shared by the methods that give a layer one table of numbers.

    min Σ_i h_i (w_i − c_k(i))²,  h_i ≥ 0.
The weights h do not change which centroid is nearest, so clusters are intervals and dynamic programming finds the best ones
exactly. Of many values the intervals are those of ``BINS`` groups of equally many, then Lloyd's steps move them on all.
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
    """The form of ``weight``'s shape; centroids (ascending) that no index points to are dropped."""
    used, index = torch.unique(index, return_inverse=True)
    return Codebook.of(index.reshape(weight.shape), centroids[used])


def importance(weight: Tensor, fisher: Tensor | None) -> Tensor:
    """h of each entry of ``weight``, flat float64 and positive. Raises NotApplicable without a Fisher diagonal.

    That is the Fisher diagonal plus ``DAMPING`` times its mean. In a trained network the gradients of most weights are almost
    0 on almost all samples; so small a sum over a few batches does not prove that a weight may become anything.
    """
    if fisher is None or fisher.shape != weight.shape:
        raise NotApplicable("no squared gradient was gathered for it, so it cannot be said which of its weights matter")
    h = fisher.double().flatten()
    if not float(h.sum()) > 0:
        raise NotApplicable("the gradient of each of its weights is 0 on the calibration data, so none matters more")
    return h + DAMPING * h.mean()


def clustered(values: Tensor, weights: Tensor, clusters: int) -> Tensor:
    """At most ``clusters`` ascending float64 centroids of ``values`` (flat) weighted by ``weights`` (flat, positive)."""
    ordered, order = values.double().sort()
    weights = weights.double()[order]
    return refined(ordered, weights, optimal(ordered, weights, clusters))


def nearest(values: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest of the ascending ``centroids`` for each value; halfway goes to the lower one."""
    return torch.bucketize(values, (centroids[1:] + centroids[:-1]) / 2)


def optimal(ordered: Tensor, weights: Tensor, clusters: int) -> Tensor:
    """The best ascending centroids of ascending float64 values, exact for up to ``BINS`` values."""
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
    """Lloyd's steps over all ascending values until no assignment changes, at most ``STEPS``."""
    mass, total = sums(weights), sums(weights * ordered)
    edges = torch.empty(0)
    for _ in range(STEPS):
        inner = torch.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2, right=True)
        found = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), len(ordered))])
        if torch.equal(found, edges):
            break
        edges = found
        # an empty cluster stays where it is; its mass is an exact 0, for both ends of it are the same
        held = mass[edges].diff()
        centroids = torch.where(held > 0, total[edges].diff() / held, centroids)
    return centroids


def sums(values: Tensor) -> Tensor:
    """Prefix sums with a leading 0, so that differences are sums over intervals."""
    return torch.cat([values.new_zeros(1), values.cumsum(0)])
