"""Functions that low-rank methods share: interpreting a rank, leading singular vectors, and balanced factors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kogata.forms import Product
from kogata.forms.product import PAIR

EXTRA = 1.25  # oversampling: columns of the random projection per requested singular vector
POWERS = 4  # power iterations with A Aᵀ, which suppress the singular values below the rank
LARGE = 512  # smallest side for which a random projection is faster than a full SVD,
SMALL_PART = 6  # if it is also this many times the rank


def rank_of(rank: float, full: int) -> int:
    """The rank as a count. A count above the full rank is returned unchanged; the caller refuses or limits it.

    >>> rank_of(5, 100), rank_of(0.25, 100), rank_of(0.001, 100)
    (5, 25, 1)
    """
    return int(rank) if rank >= 1 else max(1, round(rank * full))


def truncated(matrix_OI: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest ``rank`` singular values and their vectors: ``[O, R]``, ``[R]`` and ``[R, I]``. Deterministic.

    For a small rank of a large matrix, it uses a random projection with power iterations (Halko, Martinsson, Tropp 2011,
    0909.4061, algorithm 4.4).
    """
    small = min(matrix_OI.shape)
    if small < max(LARGE, SMALL_PART * rank):
        u_OR, s_R, v_RI = torch.linalg.svd(matrix_OI, full_matrices=False)
        return u_OR[:, :rank], s_R[:rank], v_RI[:rank]
    columns = min(small, round(EXTRA * rank) + 8)
    generator = torch.Generator().manual_seed(0)
    start_IK = torch.randn(matrix_OI.shape[1], columns, generator=generator, dtype=matrix_OI.dtype)
    basis_OK = torch.linalg.qr(matrix_OI @ start_IK)[0]
    for _ in range(POWERS):
        basis_IK = torch.linalg.qr(matrix_OI.T @ basis_OK)[0]
        basis_OK = torch.linalg.qr(matrix_OI @ basis_IK)[0]
    u_KR, s_R, v_RI = torch.linalg.svd(basis_OK.T @ matrix_OI, full_matrices=False)
    return basis_OK @ u_KR[:, :rank], s_R[:rank], v_RI[:rank]


def pair(matrix_OI: Tensor, rank: int, shape: Sequence[int]) -> Product:
    """The best approximation of rank ``rank`` as a weight of ``shape``, with balanced factors."""
    u_OR, s_R, v_RI = truncated(matrix_OI, rank)
    root_R = s_R.sqrt()
    return Product.of(PAIR, [u_OR * root_R, root_R[:, None] * v_RI], shape)


def leading(matrix_OI: Tensor, rank: int) -> Tensor:
    """Orthonormal left singular vectors ``[O, R]`` of the largest singular values, computed from the Gram matrix.

    They are only accurate to the square root of the dtype's precision. Pass float64 where no later step refines them.
    """
    return torch.linalg.eigh(matrix_OI @ matrix_OI.T)[1][:, -rank:].flip(1)


def balanced(left_OR: Tensor, right_RI: Tensor) -> tuple[Tensor, Tensor]:
    """Rescale two factors without changing their product, so that column r of one has the norm of row r of the other."""
    ratio_R = (right_RI.norm(dim=1) / left_OR.norm(dim=0).clamp_min(1e-30)).clamp_min(1e-30).sqrt()
    return left_OR * ratio_R, right_RI / ratio_R[:, None]


def parted(size: int, count: int) -> list[int]:
    """Factor ``size`` into ``count`` integers of about equal size, in ascending order.

    >>> parted(384, 3), parted(30522, 3)
    ([6, 8, 8], [1, 6, 5087])
    """
    if count == 1:
        return [size]
    share = math.log(size) / count
    divisors = [k for k in range(1, math.isqrt(size) + 1) if size % k == 0]
    nearest = min(divisors + [size // k for k in divisors], key=lambda divisor: (abs(math.log(divisor) - share), divisor))
    return sorted([nearest, *parted(size // nearest, count - 1)])
