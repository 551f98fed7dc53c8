"""Checks that several methods make of their settings and of the weights they are given."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kogata.errors import DataError, NotApplicable, UsageError
from kogata.job import Site


def check_rank(name: str, rank: float) -> None:
    """Raises UsageError unless ``rank`` is a count (from 1) or a fraction of the full rank (in (0, 1))."""
    fraction = isinstance(rank, float) and not rank.is_integer()
    if not rank > 0 or (fraction and rank >= 1):
        raise UsageError(f"{name}: rank is {rank}; expected a whole number from 1, or a fraction of the full rank.")


def rank_of(rank: float, full: int) -> int:
    """The rank as a count; one above the full rank stays so, for the caller to refuse or to cut."""
    return int(rank) if rank >= 1 else max(1, round(rank * full))


def refuse_unless_fewer(held: int, weight: Tensor, what: str) -> None:
    """Raises NotApplicable when the ``held`` numbers of all factors are no fewer than those of the weight."""
    if held >= weight.numel():
        raise NotApplicable(f"{what} holds {held} numbers, no fewer than the {weight.numel()} of {tuple(weight.shape)}")


def refuse_unless_finite(weight: Tensor, site: Site) -> None:
    """Raises DataError when a weight is NaN or infinite."""
    if not torch.isfinite(weight).all():
        raise DataError(f"{site.name} of shape {site.shape} holds NaN or infinite weights; mend the model first.")


def kernel_of(weight: Tensor, method: str) -> tuple[int, ...]:
    """The kernel of a convolution of one or two axes whose filters have an extent and several inputs.

    Raises NotApplicable for all others.
    """
    kernel = tuple(weight.shape[2:])
    if len(kernel) not in (1, 2):
        raise NotApplicable(f"{method} is for convolutions of one or two axes, this weight is {tuple(weight.shape)}")
    if math.prod(kernel) == 1:
        raise NotApplicable(f"a kernel of one place is a matrix: svd says as much as {method} with fewer factors")
    if weight.shape[1] == 1:
        raise NotApplicable(f"each of its filters reads one channel, which leaves {method} no channels to mix")
    return kernel
