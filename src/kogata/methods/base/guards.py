"""Checks on settings and weights that several methods share.

The first part names the ranges of settings that mean the same in several methods. ``Method`` checks them when it is
constructed.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from kogata.errors import DataError, NotApplicable
from kogata.job import Site
from kogata.settings import Range

Count = Annotated[int, Range(ge=1)]
Sparsity = Annotated[float, Range(ge=0, lt=1, example=0.9)]  # fraction of the numbers that is removed
Fraction = Annotated[float, Range(gt=0, lt=1, example=0.5)]
Rank = Annotated[int, Range(ge=1)] | Annotated[float, Range(gt=0, lt=1)]  # a count, or a fraction of the full rank
ResidualCount = Annotated[int, Range(ge=0)]  # rank of an added product; 0 adds none
ResidualRank = ResidualCount | Annotated[float, Range(ge=0, lt=1)]
Tolerance = Annotated[float, Range(gt=0, example=0.3)] | None  # largest relative error of the layer's outputs
Bits = Annotated[int, Range(ge=1, le=8)]
Group = Annotated[int, Range(ge=1)] | None  # columns that share a scale; None is the whole row
Clusters = Annotated[int, Range(ge=1, le=2**15)]
Damping = Annotated[float, Range(gt=0, example=0.01)]  # added to a Hessian's diagonal, relative to its mean


def refuse_unless_fewer(held: int, weight: Tensor, what: str) -> None:
    """Raises NotApplicable when all factors together hold ``held`` numbers and that is no fewer than the weight holds."""
    if held >= weight.numel():
        raise NotApplicable(f"{what} holds {held} numbers, no fewer than the {weight.numel()} of {tuple(weight.shape)}")


def refuse_unless_finite(weight: Tensor, site: Site) -> None:
    """Raises DataError when a weight is NaN or infinite."""
    if not torch.isfinite(weight).all():
        raise DataError(f"{site.name} of shape {site.shape} holds NaN or infinite weights; repair the model first.")


def kernel_of(weight: Tensor, method: str) -> tuple[int, ...]:
    """The kernel size of a 1-d or 2-d convolution.

    Raises NotApplicable for other weights, for kernels with a single position, and for filters with one input channel.
    """
    kernel = tuple(weight.shape[2:])
    if len(kernel) not in (1, 2):
        raise NotApplicable(f"{method} is for 1-d and 2-d convolutions, this weight has the shape {tuple(weight.shape)}")
    if math.prod(kernel) == 1:
        raise NotApplicable(f"a kernel of one position is a matrix: svd represents as much as {method} with fewer factors")
    if weight.shape[1] == 1:
        raise NotApplicable(f"each of its filters reads a single channel, so {method} has no channels to mix")
    return kernel
