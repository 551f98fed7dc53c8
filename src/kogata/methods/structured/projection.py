"""Functions that the structured methods share: checks of a weight, divisors, and the low-rank correction."""

from __future__ import annotations

import math

from torch import Tensor

from kogata.errors import NotApplicable
from kogata.forms import Form, Sum
from kogata.forms.tied import MAX_ENTRIES
from kogata.job import Kind, Site
from kogata.methods.base.guards import refuse_unless_fewer, refuse_unless_finite
from kogata.methods.kernels import svd

FAMILY = "structured"
LAYERS = (Kind.LINEAR, Kind.CONV, Kind.EMBEDDING)


def matrix(weight: Tensor, site: Site) -> Tensor:
    """The weight as ``[O, I]``, a convolution with its kernel flattened into the columns.

    Raises NotApplicable for depthwise filters, vectors and weights above the size limit of files, and DataError for weights
    that are NaN or infinite.
    """
    rows_OI = weight.flatten(1)
    if weight.numel() > MAX_ENTRIES:
        raise NotApplicable(f"{site.shape} has more than the {MAX_ENTRIES} entries that a structured matrix may have")
    if weight.ndim > 2 and weight.shape[1] == 1:
        raise NotApplicable(f"each of its filters reads a single channel, so {site.shape} is not a matrix between channels")
    if min(rows_OI.shape) == 1:
        raise NotApplicable(f"{tuple(rows_OI.shape)} is a vector, not a matrix")
    refuse_unless_finite(weight, site)
    return rows_OI


def finished(form: Form, weight: Tensor, residual: int, what: str) -> Form:
    """The form, or its sum with the best approximation of rank ``residual`` of its error.

    Raises NotApplicable when that rank is above the full rank, or when both together are no smaller than the weight.
    """
    full = min(weight.flatten(1).shape)
    if residual > full:
        raise NotApplicable(f"a residual of rank {residual} is above the full rank {full} of {tuple(weight.shape)}")
    held = form.kept() + residual * sum(weight.flatten(1).shape)
    refuse_unless_fewer(held, weight, f"{what} with a residual of rank {residual}" if residual else what)
    if residual == 0:
        return form
    left = (weight - form.dense().detach()).flatten(1)
    return Sum([form, svd.pair(left, residual, weight.shape)])


def divisor(size: int, wanted: int) -> int:
    """The divisor of ``size`` nearest to ``wanted`` by ratio; of two equally near ones the smaller.

    >>> divisor(784, 28), divisor(300, 16), divisor(97, 8)
    (28, 15, 1)
    """
    divisors = [k for k in range(1, size + 1) if size % k == 0]
    return min(divisors, key=lambda k: (abs(math.log(k / wanted)), k))
