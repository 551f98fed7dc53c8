"""Weight sharing by k-means: every weight of a layer becomes one of k centroids.

Gong, Liu, Yang, Bourdev, "Compressing Deep Convolutional Networks using Vector Quantization", 2014 (1412.6115), eq. 3;
Han, Mao, Dally, "Deep Compression", ICLR 2016 (1510.00149), section 3:
    min Σ_k Σ_{w in c_k} |w − c_k|²,  centroids at first linear between the smallest and the largest weight.
Lloyd's steps follow until no assignment changes. In one dimension the clusters are intervals between sorted centroids, so
each step is a search in sorted midpoints and two prefix sums: O(n log n) once, then O(k log n).
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
        centroids = lloyd(weight.flatten(), self.clusters)
        index = nearest(weight.flatten(), centroids)
        used, index = torch.unique(index, return_inverse=True)
        return Codebook.of(index.reshape(weight.shape), centroids[used])


def nearest(values: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest of the ascending ``centroids`` for each value; halfway goes to the lower one."""
    return torch.bucketize(values, (centroids[1:] + centroids[:-1]) / 2)


def lloyd(values: Tensor, clusters: int, iterations: int = 300) -> Tensor:
    """Ascending centroids ``[clusters]`` of one-dimensional k-means from a linear start, float32."""
    ordered = values.double().sort().values
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    centroids = torch.linspace(float(ordered[0]), float(ordered[-1]), clusters, dtype=torch.float64)
    edges = torch.empty(0)
    for _ in range(iterations):
        inner = torch.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2, right=True)
        found = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), len(ordered))])
        if torch.equal(found, edges):
            break
        edges = found
        counts = edges.diff()
        means = sums[edges].diff() / counts.clamp_min(1)
        centroids = torch.where(counts > 0, means, centroids).sort().values
    return centroids.float()
