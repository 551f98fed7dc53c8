"""Formulas that the methods' ``sized`` share: the setting at which a form reaches a given size.

``shape`` is that of a weight, ``[outputs, inputs, *kernel]``; ``fraction`` is the part of its float32 bytes that may be stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

BITS = 32  # of a number that a form stores as it is
SLACK = 1.05  # a form may hold this many times the size: indices of filters cost a few bits, whatever the settings
STEP = 1 / 64  # between the fractional ranks that are tried
LARGEST_TABLE = 8  # bits of an index into shared values: tables of more than 256 are rarely worth their size
LENGTHS = (2, 4, 8)  # of the vectors that are shared


def pair_rank(shape: Sequence[int], fraction: float) -> int:
    """The largest rank of two factors of the flattened weight, 0 where even 1 holds too many numbers.

    >>> pair_rank((64, 48), 0.25)
    6
    """
    return int(fraction * math.prod(shape) / (shape[0] + math.prod(shape[1:])))


def largest_fraction(held: Callable[[float], int], budget: float) -> float | None:
    """The largest rank, as a fraction in steps of 1/64, at which a form holds at most ``budget`` numbers."""
    ranks = [n * STEP for n in range(1, round(1 / STEP))]
    return max((rank for rank in ranks if held(rank) <= budget), default=None)


def block(shape: Sequence[int], fraction: float) -> int | None:
    """The fewest blocks down a diagonal, or the smallest circulant blocks; the last ones may run past the end.

    >>> block((64, 48), 0.25)
    4
    """
    outputs, inputs = shape[0], math.prod(shape[1:])
    budget = fraction * outputs * inputs
    return next((n for n in range(2, min(outputs, inputs)) if n * -(-outputs // n) * -(-inputs // n) <= budget), None)


def kept(shape: Sequence[int], fraction: float) -> int:
    """How many numbers can be kept, when the mask that says which costs its entropy in bits."""
    count, low, high = math.prod(shape), 0, math.prod(shape)
    while low < high:
        middle = (low + high + 1) // 2
        fits = BITS * middle + count * _entropy(middle / count) <= BITS * fraction * count
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def tied(shape: Sequence[int], fraction: float, share: float) -> bool:
    """Whether this ``share`` of the numbers fits, and beside it the order of the filters within ``SLACK``.

    >>> tied((16, 6, 3, 3), 0.25, 1 / 4), tied((16, 1, 3, 3), 0.25, 1 / 4)
    (True, False)
    """
    size, order = BITS * math.prod(shape), shape[0] * math.log2(shape[0])
    return share <= fraction and share * size + order <= SLACK * fraction * size


def sparsity(shape: Sequence[int], fraction: float) -> float | None:
    """The lowest fraction of zeros at which the kept numbers and their mask fit; None when not even one number fits.

    >>> sparsity((100, 100), 0.25)  # 2,259 float32 numbers and a mask of 7,706 bits
    0.7741
    """
    count = kept(shape, fraction)
    return 1 - count / math.prod(shape) if count else None


def clusters(shape: Sequence[int], fraction: float) -> int | None:
    """The most values, a power of two up to 256, that a weight can share: an index for each number, and the table.

    >>> clusters((100, 100), 0.25)  # indices of 7 bits; those of 8 would leave no room for the table
    128
    """
    count = math.prod(shape)
    fitting = [k for k in range(1, LARGEST_TABLE + 1) if count * k + BITS * 2**k <= BITS * fraction * count]
    return 2 ** fitting[-1] if fitting else None


def vectors(shape: Sequence[int], fraction: float, stages: int = 1) -> tuple[int, int] | None:
    """The number of shared vectors, a power of two up to 256, and their length, that spend most of the bits allowed.

    Every stretch of columns has a table of its own, in each of ``stages``, and each row an index into it.

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
    """The most bits, up to 8, of a code for each number, beside a float32 scale and a zero point for each row.

    >>> bits((64, 48), 0.15)
    4
    """
    count = math.prod(shape)
    rows = shape[0] if len(shape) > 1 else 1
    fitting = [n for n in range(1, 9) if count * n + rows * (BITS + n) <= BITS * fraction * count]
    return fitting[-1] if fitting else None


def _entropy(share: float) -> float:
    """Bits of a choice between two, of which one has the given share.

    >>> _entropy(0.5), round(_entropy(0.25), 4)
    (1.0, 0.8113)
    """
    return -sum(p * math.log2(p) for p in (share, 1 - share) if p > 0)
