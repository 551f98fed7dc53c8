"""Functions that the methods for transferred filters share: grouping similar filters, and measuring the error of tying them.

The filters of a trained layer come in any order, so groups must be chosen. The sum over groups of ‖T_t b − W_t‖², where b is
the mean of the T_t⁻¹ W_t, is made small greedily: repeatedly, the filter with transforms closest to other filters forms a group
with these. Where filters already are transforms of each other, this finds them without error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kogata.calibration.stats import Stats, power
from kogata.errors import NotApplicable
from kogata.forms import Form, Permuted, Sum
from kogata.forms.index_map import IndexMap
from kogata.forms.tied import Tied
from kogata.job import Site
from kogata.methods.base.guards import refuse_unless_finite
from kogata.methods.lowrank.whitened_svd import WhitenedSVD


def refuse_unless_shareable(weight: Tensor, site: Site, stats: Stats, copies: int) -> None:
    """Raises NotApplicable unless the weight is an ungrouped convolution with a multiple of ``copies`` filters."""
    if weight.ndim < 3:
        raise NotApplicable(f"only filters of convolutions can be shared, this part has the shape {tuple(weight.shape)}")
    if stats.gram_GII is None:
        raise NotApplicable(stats.unseen)
    if len(stats.gram_GII) > 1:
        raise NotApplicable("it is a grouped or depthwise convolution; its filters read different inputs")
    if len(weight) % copies:
        raise NotApplicable(f"it has {len(weight)} filters, not a multiple of {copies}")
    refuse_unless_finite(weight, site)


def refuse_unless_square(weight: Tensor, what: str) -> None:
    """Raises NotApplicable unless the kernel is two-dimensional, square and larger than 1×1."""
    if weight.ndim != 4 or weight.shape[2] != weight.shape[3] or weight.shape[2] == 1:
        raise NotApplicable(f"{what} needs a square kernel larger than 1×1, this weight is {tuple(weight.shape)}")


def transforms(map: IndexMap, weight: Tensor, copies: int) -> Tensor:
    """All transforms of all filters: ``[copies, outputs, inputs, *kernel]``."""
    outputs, *rest = weight.shape
    index, sign = map.index((copies * outputs, *rest), weight.numel())
    every = weight.flatten()[index.flatten()].reshape(outputs, copies, *rest) * sign.reshape(outputs, copies, *rest)
    return every.transpose(0, 1)


def distances(moved_TO: Tensor, weight: Tensor) -> Tensor:
    """``‖T_t W_i − W_j‖²`` as ``[T, O, O]``, float64, for transforms ``[T, O, ...]`` of filters ``[O, ...]``."""
    rows_OI, moved_TOI = weight.flatten(1).double(), moved_TO.flatten(2).double()
    squares_TOO = moved_TOI.square().sum(2)[:, :, None] + rows_OI.square().sum(1)
    return (squares_TOO - 2 * moved_TOI @ rows_OI.T).clamp_min(0)


def grouped(distance_TOO: Tensor) -> Tensor:
    """A permutation of the filters (int64) into consecutive groups: filter t of a group is close to transform t of the first.

    Greedy: among the remaining filters, the one with transforms closest to other remaining filters forms a group with these.
    """
    copies, outputs, _ = distance_TOO.shape
    free_TOO = distance_TOO[1:].clone()
    free_TOO.diagonal(dim1=1, dim2=2).fill_(math.inf)
    order: list[int] = []
    for _ in range(outputs // copies):
        cost_O = free_TOO.amin(2).sum(0)
        cost_O[order] = math.inf
        group = [int(cost_O.argmin())]
        free_TOO[:, :, group[0]] = math.inf
        for near_OO in free_TOO:
            group.append(int(near_OO[group[0]].argmin()))
            free_TOO[:, :, group[-1]] = math.inf
        order += group
    return torch.tensor(order)


def tied(map: IndexMap, weight: Tensor, base: Sequence[int], order: Tensor) -> Form:
    """The least-squares form for ``weight`` in which the filters, in this order, are transforms of a base of shape ``base``."""
    form = Tied.of(map, weight[order], base)
    return form if torch.equal(order, torch.arange(len(order))) else Permuted(order.argsort(), form)


def within(form: Form, weight: Tensor, site: Site, stats: Stats, tolerance: float | None, residual: float) -> Form:
    """The form, plus a low-rank correction of rank ``residual`` if that is not 0.

    Raises NotApplicable with the relative error of the layer's outputs when it is above ``tolerance``.
    """
    if residual:
        missing = weight - form.dense().detach()
        form = Sum([form, WhitenedSVD(rank=residual).encode(missing, site, stats)])
    error = output_error(weight - form.dense().detach(), weight, stats)
    if tolerance is not None and error > tolerance:
        raise NotApplicable(f"sharing filters changes its outputs by {error:.3f} (relative), the tolerance is {tolerance:g}")
    return form


def output_error(change: Tensor, weight: Tensor, stats: Stats) -> float:
    """‖X Δᵀ‖ / ‖X Wᵀ‖ on the calibration data; 0 where all outputs are 0."""
    if stats.gram_GII is None:
        raise NotApplicable(stats.unseen)
    outputs = power(weight, stats.gram_GII)
    return math.sqrt(power(change, stats.gram_GII) / outputs) if outputs > 0 else 0.0
