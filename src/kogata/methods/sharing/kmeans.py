"""Weight sharing by k-means: every weight of a layer becomes one of k centroids.

Gong, Liu, Yang, Bourdev, "Compressing Deep Convolutional Networks using Vector Quantization", 2014 (1412.6115), eq. 3;
Han, Mao, Dally, "Deep Compression", ICLR 2016 (1510.00149), section 3:
    min Σ_k Σ_{w in c_k} |w − c_k|².
In one dimension the clusters are intervals, and dynamic programming finds the best ones exactly, where Lloyd's steps from
a linear start lose centroids to empty intervals, which costs small first layers most. Of large layers the intervals are
those of ``BINS`` groups of equally many weights, then Lloyd's steps move them on all weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from kogata.calibrate import Stats
from kogata.errors import UsageError
from kogata.forms import Codebook, Form, Role
from kogata.job import Site
from kogata.method import About, WeightMethod

BINS = 4096
STEPS = 300


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
    )
    ACCEPTS = frozenset({Role.MATRIX, Role.VALUES})
    LEAVES = frozenset({Role.TABLE})
    GRID: ClassVar[Mapping[str, tuple[int, ...]]] = {"clusters": (4, 8, 16, 32, 64, 256)}

    def __post_init__(self) -> None:
        if not 1 <= self.clusters <= 2**15:
            raise UsageError(f"k-means: clusters is {self.clusters}; expected 1 to 32,768.")

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """Indices into sorted centroids; centroids that no weight is nearest to are dropped."""
        values = weight.flatten()
        ordered = values.double().sort().values
        centroids = refined(ordered, optimal(ordered, self.clusters)).to(values.dtype).unique()
        index = nearest(values, centroids)
        used, index = torch.unique(index, return_inverse=True)
        return Codebook.of(index.reshape(weight.shape), centroids[used])


def nearest(values: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest of the ascending ``centroids`` for each value; halfway goes to the lower one."""
    return torch.bucketize(values, (centroids[1:] + centroids[:-1]) / 2)


def optimal(ordered: Tensor, clusters: int) -> Tensor:
    """Ascending centroids of k-means over ascending float64 values: the best ones, up to ``BINS`` values of one weight each."""
    from kogata.kernels import intervals  # numba takes half a second to import

    points, counts = ordered.unique_consecutive(return_counts=True)
    if len(points) > BINS:
        groups = ordered.tensor_split(BINS)
        points = torch.stack([group.mean() for group in groups])
        counts = torch.tensor([len(group) for group in groups])
    clusters = min(clusters, len(points))
    starts = torch.from_numpy(intervals.split(points.numpy(), counts.double().numpy(), clusters))
    edges = torch.cat([starts, starts.new_full((1,), len(points))])
    mass = torch.cat([points.new_zeros(1), counts.double().cumsum(0)])
    total = torch.cat([points.new_zeros(1), (points * counts).cumsum(0)])
    return total[edges].diff() / mass[edges].diff()


def refined(ordered: Tensor, centroids: Tensor) -> Tensor:
    """Lloyd's steps over all ascending values until no assignment changes, at most ``STEPS``."""
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    edges = torch.empty(0)
    for _ in range(STEPS):
        inner = torch.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2, right=True)
        found = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), len(ordered))])
        if torch.equal(found, edges):
            break
        edges, counts = found, found.diff()
        centroids = torch.where(counts > 0, sums[edges].diff() / counts.clamp_min(1), centroids)
    return centroids
