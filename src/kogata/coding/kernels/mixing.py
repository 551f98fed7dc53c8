"""Logistic mixing of predictions in integer arithmetic.

Mattern, "Mixing strategies in data compression", DCC 2012; Mahoney, PAQ8, 2007. With st(p) = ln(p / (1 - p)), the mixed
prediction is p = squash(sum_i w_i st(p_i)), and after the bit every weight takes a step of gradient descent on its code
length:  w_i <- w_i + rate st(p_i) (bit - p).

Log-odds are in units of 1/256 up to +-12, weights and probabilities in units of 1/65536.
"""

# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportReturnType=false
# Numba has no type stubs and its scalars are no ints to a type checker; the annotations are for readers and callers.

from decimal import Decimal
from functools import cache

import numpy as np
from numba import int64, njit
from numpy.typing import NDArray

ODDS_LIMIT = 12 * 256


@cache
def logistic_tables() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The tables squash, indexed by log-odds + ODDS_LIMIT, and its inverse stretch, indexed by probability.

    They are computed in decimal arithmetic, which rounds alike on every machine; the C library's exp may not.
    """
    odds = range(-ODDS_LIMIT, ODDS_LIMIT + 1)
    squash = np.array([int(65536 / (1 + (Decimal(-x) / 256).exp())) for x in odds], np.int64).clip(1, 65535)
    stretch = np.searchsorted(squash, np.arange(65536)) - ODDS_LIMIT
    return squash, stretch.clip(-ODDS_LIMIT, ODDS_LIMIT)


@njit(inline="always")
def mixed(inputs: NDArray[np.int64], weights: NDArray[np.int64], squash: NDArray[np.int64]) -> int:
    """The mixed probability of a one, in 1/65536."""
    total = int64(0)
    for i in range(len(inputs)):
        total += inputs[i] * weights[i]
    return squash[min(max(total >> 16, -ODDS_LIMIT), ODDS_LIMIT) + ODDS_LIMIT]


@njit(inline="always")
def adjust(inputs: NDArray[np.int64], weights: NDArray[np.int64], error: int, rate: int) -> None:
    """One step of gradient descent on the weights for the ``error`` bit - p, in 1/65536; ``rate`` is in 1/4096."""
    for i in range(len(inputs)):
        weights[i] += (inputs[i] * error * rate + (1 << 19)) >> 20
