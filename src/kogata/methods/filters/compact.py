"""What the compact blocks share: the gram of a layer's inputs, and the best filters of two kernels on given channels."""

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
    """The gram of the columns ``[inputs · places]`` of a flattened convolution, in float64; the identity where none is known.

    Raises NotApplicable for grouped convolutions, DataError for weights that are not finite.
    """
    if stats.gram_GII is None:
        refuse_unless_finite(weight, site)
        return torch.eye(weight[0].numel(), dtype=torch.float64)
    gram_II = seen(weight, site, stats)
    return gram_II + multiple(DAMPING, gram_II)


def centre_of(weight: Tensor, method: str) -> int:
    """The place in the centre of the flattened kernel. Raises NotApplicable as ``kernel_of`` does, and for even sides."""
    kernel = kernel_of(weight, method)
    if any(side % 2 == 0 for side in kernel):
        raise NotApplicable(f"a kernel of {'×'.join(map(str, kernel))} places has none in its centre for the smaller filters")
    return math.prod(kernel) // 2


def large_filters(share: float, outputs: int) -> int:
    """How many of the filters keep their kernel: at least one, and not all."""
    if outputs < 2:
        raise NotApplicable("a layer of one filter has none to choose from")
    return min(max(1, round(share * outputs)), outputs - 1)


@dataclass(frozen=True)
class Filters:
    """Which filters have one place (``member_O`` is 0) or all (1), those of one ``[·, S]``, and those of all ``[·, S, K]``."""

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
    """The filters of least ‖W X − V X‖² of which ``count`` have all places of the kernel.

    ``inner`` ``[S, K, S, K]`` is the gram of the channels that they read, ``cross`` ``[O, S, K]`` the products of these with
    the wanted outputs. Each filter is a least squares problem of its own, so that the choice is exact as well.
    """
    channels, places = inner.shape[:2]
    inner_SKSK = inner.reshape(channels * places, -1)
    small_OS = torch.linalg.solve(inner[:, centre, :, centre], cross[:, :, centre], left=False)
    large_OSK = torch.linalg.solve(inner_SKSK, cross.flatten(1), left=False).reshape(cross.shape)
    gain_O = (large_OSK * cross).sum((1, 2)) - (small_OS * cross[:, :, centre]).sum(1)
    member_O = torch.zeros(len(cross), dtype=torch.int64)
    member_O[gain_O.argsort(descending=True, stable=True)[:count]] = 1
    return Filters(member_O, small_OS[member_O == 0], large_OSK[member_O == 1])
