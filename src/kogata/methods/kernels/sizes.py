"""Which setting of a method reaches a given size: functions shared by the ``sized`` of several methods.

``fraction`` is the size of the form in bits, relative to that of a float32 weight of the given shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

BITS = 32  # bits of a stored float32 number
SLACK = 1.05  # a form may exceed the requested size by this factor: indices of filters cost a few bits with any settings
STEP = 1 / 64  # distance between the fractional ranks that are tried
LARGEST_TABLE = 8  # most bits of an index: tables of more than 256 shared values are rarely worth their size
LENGTHS = (2, 4, 8)  # lengths of shared vectors that are tried


def pair_rank(shape: Sequence[int], fraction: float) -> int:
    """The largest rank at which two factors of the flattened weight fit; 0 where even rank 1 is too large.

    >>> pair_rank((64, 48), 0.25)
    6
    """
    return int(fraction * math.prod(shape) / (shape[0] + math.prod(shape[1:])))


def largest_fraction(held: Callable[[float], int], budget: float) -> float | None:
    """The largest fractional rank, in steps of 1/64, at which ``held(rank)``, the size of the form, is at most ``budget``."""
    ranks = [n * STEP for n in range(1, round(1 / STEP))]
    return max((rank for rank in ranks if held(rank) <= budget), default=None)


def block(shape: Sequence[int], fraction: float) -> int | None:
    """The smallest number of diagonal blocks, or size of circulant blocks, that fits; the last blocks may be cropped.

    >>> block((64, 48), 0.25)
    4
    """
    outputs, inputs = shape[0], math.prod(shape[1:])
    budget = fraction * outputs * inputs
    return next((n for n in range(2, min(outputs, inputs)) if n * -(-outputs // n) * -(-inputs // n) <= budget), None)


def kept(shape: Sequence[int], fraction: float) -> int:
    """How many numbers can be kept so that they and the entropy-coded mask fit together."""
    count, low, high = math.prod(shape), 0, math.prod(shape)
    while low < high:
        middle = (low + high + 1) // 2
        fits = BITS * middle + count * _entropy(middle / count) <= BITS * fraction * count
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def tied(shape: Sequence[int], fraction: float, share: float) -> bool:
    """Whether a base with ``share`` of the numbers fits, and within ``SLACK`` also the order of the filters beside it.

    >>> tied((16, 6, 3, 3), 0.25, 1 / 4), tied((16, 1, 3, 3), 0.25, 1 / 4)
    (True, False)
    """
    size, order = BITS * math.prod(shape), shape[0] * math.log2(shape[0])
    return share <= fraction and share * size + order <= SLACK * fraction * size


def sparsity(shape: Sequence[int], fraction: float) -> float | None:
    """The smallest sparsity at which the kept numbers and their mask fit; None where none does.

    >>> sparsity((100, 100), 0.25)
    0.7741
    """
    count = kept(shape, fraction)
    return 1 - count / math.prod(shape) if count else None


def clusters(shape: Sequence[int], fraction: float) -> int | None:
    """The largest number of shared values, a power of two up to 256, at which the indices and the table fit.

    >>> clusters((100, 100), 0.25)
    128
    """
    count = math.prod(shape)
    fitting = [k for k in range(1, LARGEST_TABLE + 1) if count * k + BITS * 2**k <= BITS * fraction * count]
    return 2 ** fitting[-1] if fitting else None


def vectors(shape: Sequence[int], fraction: float, stages: int = 1) -> tuple[int, int] | None:
    """The number of shared vectors, a power of two up to 256, and their length that use most of the allowed bits.

    Each group of ``length`` columns has its own table in each of ``stages``, and each row an index into it.

    >>> vectors((512, 64), 0.1)
    (16, 2)
    """
    outputs, inputs = shape[0], math.prod(shape[1:])
    spent = {
        stages * -(-inputs // length) * (outputs * bits + BITS * length * 2**bits): (2**bits, length)
        for length in LENGTHS if length <= inputs
        for bits in range(1, LARGEST_TABLE + 1) if 2**bits < outputs
    }  # fmt: skip
    return spent[max(fitting)] if (fitting := [bits for bits in spent if bits <= BITS * fraction * outputs * inputs]) else None


def bits(shape: Sequence[int], fraction: float) -> int | None:
    """The largest bit width, up to 8, at which codes fit together with a float32 scale and a zero point for each row.

    >>> bits((64, 48), 0.15)
    4
    """
    count = math.prod(shape)
    rows = shape[0] if len(shape) > 1 else 1
    fitting = [n for n in range(1, 9) if count * n + rows * (BITS + n) <= BITS * fraction * count]
    return fitting[-1] if fitting else None


def _entropy(share: float) -> float:
    """The entropy in bits of a binary choice with probability ``share``.

    >>> _entropy(0.5)
    1.0
    """
    return -sum(p * math.log2(p) for p in (share, 1 - share) if p > 0)
