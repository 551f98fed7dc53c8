"""What the methods of this family share: which weights are matrices, divisors, and the low-rank residual."""

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

    Raises NotApplicable for depthwise filters, sides of one entry and what no file would give back, DataError for NaN.
    """
    rows_OI = weight.flatten(1)
    if weight.numel() > MAX_ENTRIES:
        raise NotApplicable(f"{site.shape} has more than the {MAX_ENTRIES} entries that a structured matrix may have")
    if weight.ndim > 2 and weight.shape[1] == 1:
        raise NotApplicable(f"each of its filters reads one channel, so {site.shape} is no matrix between channels")
    if min(rows_OI.shape) == 1:
        raise NotApplicable(f"{tuple(rows_OI.shape)} is a vector, which has no structure of a matrix")
    refuse_unless_finite(weight, site)
    return rows_OI


def finished(form: Form, weight: Tensor, residual: int, what: str) -> Form:
    """The form, or its sum with the best matrix of rank ``residual`` for what it leaves of the weight.

    Raises NotApplicable when that rank is above the full one, or when all numbers are no fewer than the weight's.
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
    """The divisor of ``size`` nearest to ``wanted`` by ratio, the smaller of two.

    >>> divisor(784, 28), divisor(300, 16), divisor(97, 8)
    (28, 15, 1)
    """
    divisors = [k for k in range(1, size + 1) if size % k == 0]
    return min(divisors, key=lambda k: (abs(math.log(k / wanted)), k))
