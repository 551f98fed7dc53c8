"""Orthonormal Hadamard matrices as products of two small factors."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def transformed(x: Tensor, large: Tensor, small: Tensor) -> Tensor:
    """The orthonormal Hadamard transform of the last axis, computed with the two Kronecker factors of its matrix."""
    folded = x.reshape(-1, len(large), len(small))
    return (large @ (folded @ small)).reshape(x.shape)


def hadamard_factors(size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two Hadamard matrices of about equal size. Their Kronecker product is the Hadamard matrix of ``size``."""
    bits = size.bit_length() - 1
    return hadamard(1 << (bits - bits // 2), dtype), hadamard(1 << (bits // 2), dtype)


def hadamard(size: int, dtype: torch.dtype) -> Tensor:
    """The orthonormal Hadamard matrix in Sylvester's order: entry (i, j) is (−1)^|i ∧ j| / √size. ``size`` is a power of two.

    >>> hadamard(2, torch.float64) * 2**0.5
    tensor([[ 1.,  1.],
            [ 1., -1.]], dtype=torch.float64)
    """
    matrix = torch.ones(1, 1, dtype=dtype)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)
