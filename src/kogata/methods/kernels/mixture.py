"""The negative log-likelihood of many numbers under a mixture of Gaussians, and its gradients, in one pass.

    p(w) = Σ_k π_k √(γ_k / 2π) exp(−γ_k (w − μ_k)² / 2).
Numbers are processed in blocks, so that the compiler can vectorize every inner loop.
"""

# numba's decorators are untyped
# pyright: reportUntypedFunctionDecorator=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from kogata.system.compiled import cached_njit

BLOCK = 512
FLOOR = -60.0  # log of the smallest responsibility that is distinguished from zero
HALVINGS = 8


@njit(inline="always")
def _exp(x: float) -> float:
    """exp(x) for x in [FLOOR, 0], with an error of 1e-10: a polynomial in x / 256, squared 8 times. It vectorizes well."""
    y = x / 2**HALVINGS
    e = 1 + y * (1 + y / 2 * (1 + y / 3 * (1 + y / 4 * (1 + y / 5 * (1 + y / 6 * (1 + y / 7))))))
    for _ in range(HALVINGS):
        e *= e
    return e


@cached_njit(fastmath=True)
def negative_log(
    numbers_N: NDArray[np.float32], means_K: NDArray[np.float64], log_precisions_K: NDArray[np.float64],
    log_shares_K: NDArray[np.float64], gradient_N: NDArray[np.float32], gradients_3K: NDArray[np.float64],
) -> float:  # fmt: skip
    """Return −Σ log p. Write its gradient with respect to the numbers, and add those of means, log γ and log π to
    ``gradients_3K``.
    """
    count = len(means_K)
    precision_K = np.exp(log_precisions_K)
    height_K = log_shares_K + log_precisions_K / 2 - math.log(2 * math.pi) / 2
    term_KB = np.empty((count, BLOCK))
    most_B, sum_B, slope_B = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)
    total = 0.0
    for start in range(0, len(numbers_N), BLOCK):
        size = min(BLOCK, len(numbers_N) - start)
        block = numbers_N[start : start + size]
        for k in range(count):
            for i in range(size):
                d = block[i] - means_K[k]
                term = height_K[k] - precision_K[k] * d * d / 2
                term_KB[k, i] = term
                most_B[i] = term if k == 0 else max(most_B[i], term)
        sum_B[:] = 0
        for k in range(count):
            for i in range(size):
                e = _exp(max(term_KB[k, i] - most_B[i], FLOOR))
                term_KB[k, i] = e
                sum_B[i] += e
        for i in range(size):
            total -= most_B[i] + math.log(sum_B[i])
            sum_B[i] = 1 / sum_B[i]
        slope_B[:] = 0
        for k in range(count):
            mean = share = spread = 0.0
            for i in range(size):
                r = term_KB[k, i] * sum_B[i]
                d = block[i] - means_K[k]
                pull = r * precision_K[k] * d
                slope_B[i] += pull
                mean += pull
                spread += pull * d
                share += r
            gradients_3K[0, k] -= mean
            gradients_3K[1, k] += (spread - share) / 2
            gradients_3K[2, k] -= share
        for i in range(size):
            gradient_N[start + i] = slope_B[i]
    return total
