"""K-means of sub-vectors, with one codebook for each sub-space, for methods that build :class:`kogata.forms.Vectors`.

Lloyd, "Least squares quantization in PCM", 1982, with the initialization of Arthur and Vassilvitskii, "k-means++", SODA 2007:
each new centroid is a point drawn with a probability proportional to its squared distance from the nearest centroid so far. All
sub-spaces are clustered in parallel. The random seed is fixed, so the same points give the same codebooks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kogata.errors import NotApplicable

STEPS = 50
PIECE = 1 << 24  # number of distances held in memory at a time


def split(weight: Tensor, length: int, clusters: int) -> Tensor:
    """The rows of ``weight`` as points ``[S, O, D]`` of S sub-spaces; the last one is padded with zeros.

    Raises NotApplicable when sharing is not possible: for vectors, short rows, and no more rows than clusters.
    """
    if weight.ndim < 2:
        raise NotApplicable("a vector has no rows to cut into sub-vectors")
    rows_OI = weight.flatten(1)
    rows, columns = rows_OI.shape
    if length > columns:
        raise NotApplicable(f"its rows have {columns} entries, too few for sub-vectors of {length}")
    if rows <= clusters:
        raise NotApplicable(f"it has {rows} rows, no more than there are clusters ({clusters})")
    padded_OI = functional.pad(rows_OI, (0, -columns % length))
    return padded_OI.reshape(rows, -1, length).transpose(0, 1).contiguous()


def clustered(points_SOD: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """K-means in each sub-space: the index ``[O, S]`` of each sub-vector, and the centroids ``[S, K, D]``."""
    random = torch.Generator().manual_seed(0)
    several = max(1, PIECE // (points_SOD.shape[1] * clusters))
    found = [refined(points, seeded(points, clusters, random)) for points in points_SOD.split(several)]
    return torch.cat([index for index, _ in found]).T, torch.cat([table for _, table in found])


def seeded(points_SOD: Tensor, clusters: int, random: torch.Generator) -> Tensor:
    """The initial centroids of k-means++, ``[S, K, D]``."""
    spaces, rows, _ = points_SOD.shape
    # The odds do not depend on the unit. A power of two near the largest entry is exact, and squares then never overflow.
    exponent = torch.frexp(points_SOD.abs().amax()).exponent
    unit_SOD = torch.ldexp(points_SOD, -exponent)
    every = torch.arange(spaces)
    chosen_S = torch.randint(rows, (spaces,), generator=random)
    table, distance_SO = [points_SOD[every, chosen_S]], torch.full((spaces, rows), torch.inf, dtype=points_SOD.dtype)
    for _ in range(1, clusters):
        distance_SO = torch.minimum(distance_SO, (unit_SOD - unit_SOD[every, chosen_S][:, None]).square().sum(2))
        odds_SO = distance_SO.where(distance_SO.sum(1, keepdim=True) > 0, 1.0)  # if every point is a centroid, draw any
        chosen_S = torch.multinomial(odds_SO, 1, generator=random)[:, 0]
        table.append(points_SOD[every, chosen_S])
    return torch.stack(table, dim=1)


def refined(points_SOD: Tensor, table_SKD: Tensor) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm until no assignment changes, for at most ``STEPS`` steps.

    Returns the index ``[S, O]`` of the nearest centroids, and the centroids.
    """
    index_SO = nearest(points_SOD, table_SKD)
    for _ in range(STEPS):
        table_SKD = _means(points_SOD, index_SO, table_SKD)
        found_SO = nearest(points_SOD, table_SKD)
        if torch.equal(found_SO, index_SO):
            break
        index_SO = found_SO
    return index_SO, table_SKD


def nearest(points_SOD: Tensor, table_SKD: Tensor) -> Tensor:
    """The index of the nearest centroid, ``[S, O]``: argmin_k ‖c_k‖² − 2 x·c_k."""
    return torch.baddbmm(table_SKD.square().sum(2)[:, None], points_SOD, table_SKD.mT, alpha=-2).argmin(2)


def _means(points_SOD: Tensor, index_SO: Tensor, table_SKD: Tensor) -> Tensor:
    """The mean of each cluster; an empty one moves to the point that is farthest from its centroid."""
    wide_SOD = index_SO[:, :, None].expand_as(points_SOD)
    count_SK = table_SKD.new_zeros(table_SKD.shape[:2]).scatter_add_(1, index_SO, table_SKD.new_ones(index_SO.shape))
    sum_SKD = torch.zeros_like(table_SKD).scatter_add_(1, wide_SOD, points_SOD)
    mean_SKD = sum_SKD / count_SK[:, :, None].clamp_min(1)
    for space in (count_SK == 0).any(1).nonzero().flatten().tolist():
        empty_E = (count_SK[space] == 0).nonzero().flatten()
        error_O = (points_SOD[space] - mean_SKD[space, index_SO[space]]).square().sum(1)
        mean_SKD[space, empty_E] = points_SOD[space, error_O.topk(len(empty_E)).indices]
    return mean_SKD
