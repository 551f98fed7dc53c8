"""Functions that the compact blocks share: the Gram matrix of a layer's inputs, and the best 1×1 and full filters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable
from kogata.job import Site
from kogata.methods.base.guards import kernel_of, refuse_unless_finite
from kogata.methods.kernels.whitening import DAMPING, multiple, seen


def gram_of(weight: Tensor, site: Site, stats: Stats) -> Tensor:
    """The damped Gram matrix of the inputs ``[inputs · positions]`` of a flattened convolution, float64.

    It is the identity where the inputs could not be seen. Raises NotApplicable for grouped convolutions, and DataError for
    weights that are not finite.
    """
    if stats.gram_GII is None:
        refuse_unless_finite(weight, site)
        return torch.eye(weight[0].numel(), dtype=torch.float64)
    gram_II = seen(weight, site, stats)
    return gram_II + multiple(DAMPING, gram_II)


def centre_of(weight: Tensor, method: str) -> int:
    """The index of the centre in the flattened kernel. Raises NotApplicable as ``kernel_of`` does, and for even sides."""
    kernel = kernel_of(weight, method)
    if any(side % 2 == 0 for side in kernel):
        raise NotApplicable(f"a kernel of {'×'.join(map(str, kernel))} has no central position for the smaller filters")
    return math.prod(kernel) // 2


def large_filters(share: float, outputs: int) -> int:
    """The number of filters that keep their kernel: at least one, and not all. Raises NotApplicable for a single filter."""
    if outputs < 2:
        raise NotApplicable("a layer with a single filter leaves no choice")
    return min(max(1, round(share * outputs)), outputs - 1)


@dataclass(frozen=True)
class Filters:
    """Filters of two kernel sizes: 1×1 filters ``[·, S]`` where ``member_O`` is 0, full filters ``[·, S, K]`` where it is 1."""

    member_O: Tensor
    small_OS: Tensor
    large_OSK: Tensor

    def full(self, centre: int) -> Tensor:
        """All filters ``[O, S, K]`` in the order of the outputs."""
        outputs, (_, channels, places) = len(self.member_O), self.large_OSK.shape
        full_OSK = self.large_OSK.new_zeros(outputs, channels, places)
        full_OSK[self.member_O == 0, :, centre] = self.small_OS
        full_OSK[self.member_O == 1] = self.large_OSK
        return full_OSK


def best_filters(inner: Tensor, cross: Tensor, centre: int, count: int) -> Filters:
    """The filters V with the least ‖W X − V X‖², of which ``count`` have the full kernel and the others are 1×1.

    ``inner`` ``[S, K, S, K]`` is the Gram matrix of the channels that they read, ``cross`` ``[O, S, K]`` the products of these
    channels with the desired outputs. Each filter is a separate least-squares problem, so the choice of filters is optimal too.
    """
    channels, places = inner.shape[:2]
    inner_SKSK = inner.reshape(channels * places, -1)
    small_OS = torch.linalg.solve(inner[:, centre, :, centre], cross[:, :, centre], left=False)
    large_OSK = torch.linalg.solve(inner_SKSK, cross.flatten(1), left=False).reshape(cross.shape)
    gain_O = (large_OSK * cross).sum((1, 2)) - (small_OS * cross[:, :, centre]).sum(1)
    member_O = torch.zeros(len(cross), dtype=torch.int64)
    member_O[gain_O.argsort(descending=True, stable=True)[:count]] = 1
    return Filters(member_O, small_OS[member_O == 0], large_OSK[member_O == 1])
