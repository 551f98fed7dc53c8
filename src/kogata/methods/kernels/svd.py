"""What the low-rank methods share: how a rank is given, leading singular vectors, and factors of equal size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kogata.forms import Product
from kogata.forms.product import PAIR

EXTRA = 1.25  # columns that a random projection carries along for each one that is asked for
POWERS = 4  # of A Aᵀ: what lies below the rank is damped by its singular values to twice this power
LARGE = 512  # rows and columns from which a random projection is worth it
SMALL_PART = 6  # and so many times the rank


def rank_of(rank: float, full: int) -> int:
    """The rank as a count; one above the full rank stays so, for the caller to refuse or to cut.

    >>> rank_of(5, 100), rank_of(0.25, 100), rank_of(0.001, 100)
    (5, 25, 1)
    """
    return int(rank) if rank >= 1 else max(1, round(rank * full))


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


def parted(size: int, count: int) -> list[int]:
    """``count`` whole numbers with the product ``size``, in rising order, each the divisor nearest to an equal share.

    >>> parted(384, 3), parted(30522, 3)
    ([6, 8, 8], [1, 6, 5087])
    """
    if count == 1:
        return [size]
    share = math.log(size) / count
    divisors = [k for k in range(1, math.isqrt(size) + 1) if size % k == 0]
    nearest = min(divisors + [size // k for k in divisors], key=lambda divisor: (abs(math.log(divisor) - share), divisor))
    return sorted([nearest, *parted(size // nearest, count - 1)])
