"""What the low-rank methods share: how a rank is given, leading singular vectors, and factors of equal size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kogata.errors import DataError, NotApplicable, UsageError
from kogata.forms import Product
from kogata.forms.product import PAIR
from kogata.job import Site

EXTRA = 1.25  # columns that a random projection carries along for each one that is asked for
POWERS = 4  # of A Aᵀ: what lies below the rank is damped by its singular values to twice this power
LARGE = 512  # rows and columns from which a random projection is worth it
SMALL_PART = 6  # and so many times the rank


def check(name: str, rank: float) -> None:
    """Raises UsageError unless ``rank`` is a count (from 1) or a fraction of the full rank (in (0, 1))."""
    fraction = isinstance(rank, float) and not rank.is_integer()
    if not rank > 0 or (fraction and rank >= 1):
        raise UsageError(f"{name}: rank is {rank}; expected a whole number from 1, or a fraction of the full rank.")


def resolved(rank: float, full: int) -> int:
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


def truncated(matrix_OI: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular values and vectors: ``[O, R]``, ``[R]`` and ``[R, I]``, in float32 and the same on every run.

    A random projection with power steps (Halko, Martinsson, Tropp 2011, 0909.4061, algorithm 4.4) finds few of many.
    """
    small = min(matrix_OI.shape)
    if small < max(LARGE, SMALL_PART * rank):
        u_OR, s_R, v_RI = torch.linalg.svd(matrix_OI, full_matrices=False)
        return u_OR[:, :rank], s_R[:rank], v_RI[:rank]
    columns = min(small, round(EXTRA * rank) + 8)
    generator = torch.Generator().manual_seed(0)
    basis_OK = torch.linalg.qr(matrix_OI @ torch.randn(matrix_OI.shape[1], columns, generator=generator))[0]
    for _ in range(POWERS):
        basis_IK = torch.linalg.qr(matrix_OI.T @ basis_OK)[0]
        basis_OK = torch.linalg.qr(matrix_OI @ basis_IK)[0]
    u_KR, s_R, v_RI = torch.linalg.svd(basis_OK.T @ matrix_OI, full_matrices=False)
    return basis_OK @ u_KR[:, :rank], s_R[:rank], v_RI[:rank]


def pair(matrix_OI: Tensor, rank: int, shape: Sequence[int]) -> Product:
    """The nearest product of two factors of one size, as a weight of ``shape``."""
    u_OR, s_R, v_RI = truncated(matrix_OI, rank)
    root_R = s_R.sqrt()
    return Product.of(PAIR, [u_OR * root_R, root_R[:, None] * v_RI], shape)


def leading(matrix_OI: Tensor, rank: int) -> Tensor:
    """Orthonormal left singular vectors ``[O, R]`` of the largest singular values, from the Gram matrix.

    Directions are right to the square root of the dtype's precision: pass float64 where no step follows that mends them.
    """
    return torch.linalg.eigh(matrix_OI @ matrix_OI.T)[1][:, -rank:].flip(1)


def balanced(left_OR: Tensor, right_RI: Tensor) -> tuple[Tensor, Tensor]:
    """The same product from factors of which column r of the one is as long as row r of the other."""
    ratio_R = (right_RI.norm(dim=1) / left_OR.norm(dim=0).clamp_min(1e-30)).clamp_min(1e-30).sqrt()
    return left_OR * ratio_R, right_RI / ratio_R[:, None]
