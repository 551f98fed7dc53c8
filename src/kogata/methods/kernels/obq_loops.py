"""The compiled inner loops of ``obq``, parallel over the rows of a layer."""

# numba's decorators are untyped
# pyright: reportUntypedFunctionDecorator=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from kogata.system.compiled import cached_njit

TINY = 1e-30  # smallest scale, whose reciprocal is finite in float32; a group with a smaller scale becomes zero

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


@cached_njit(parallel=True, fastmath=True)
def successive(
    weight: Floats, carried: Floats, transfer: Floats, scale: Floats, zero: Floats, kept: Bools, top: int, error: Floats,
    code: Floats, start: int,
) -> None:  # fmt: skip
    """Write codes and errors of the columns from ``start`` on. ``carried`` is the error propagated from earlier columns."""
    for r in prange(weight.shape[0]):
        for j in range(start, start + carried.shape[1]):
            target = weight[r, j] + carried[r, j - start]
            for i in range(start, j):
                target += transfer[j, i] * error[r, i]
            z = zero[r, j]
            if kept[r, j]:
                code[r, j] = min(max(np.rint(target / scale[r, j]) + z, np.float32(0)), np.float32(top))
            else:
                code[r, j] = z
            error[r, j] = weight[r, j] - scale[r, j] * (code[r, j] - z)


@cached_njit(parallel=True, fastmath=True)
def priced(
    weight: Floats, carried: Floats, transfer: Floats, cost: Floats, step: float, kept: Bools, price: Floats, error: Floats,
    code: Floats, start: int,
) -> None:  # fmt: skip
    """Like ``successive``, on the grid of the multiples of ``step``, with a price for each code.

    A code c costs ``cost[j] (target / step − c)² + price[c + most]``; ``price`` has 2 · most + 1 entries. The nearest code, the
    next one towards zero, and zero compete.
    """
    most = len(price) // 2
    for r in prange(weight.shape[0]):
        for j in range(start, start + carried.shape[1]):
            target = weight[r, j] + carried[r, j - start]
            for i in range(start, j):
                target += transfer[j, i] * error[r, i]
            chosen = np.float32(0)
            if kept[r, j]:
                x = target / np.float32(step)
                nearest = min(max(np.rint(x), np.float32(-most)), np.float32(most))
                least = np.float32(np.inf)
                for option in (nearest, nearest - np.sign(nearest), np.float32(0)):
                    total = cost[j] * (x - option) ** 2 + price[int(option) + most]
                    if total < least:
                        least, chosen = total, option
            code[r, j] = chosen
            error[r, j] = weight[r, j] - np.float32(step) * chosen


@cached_njit(parallel=True, fastmath=True)
def descend(
    gradient: Floats, gram: Floats, scale: Floats, zero: Floats, kept: Bools, top: int, code: Floats, sweeps: int
) -> None:
    """Coordinate descent on ``code`` in place. ``gradient``, of half the error in the weight, is kept up to date with it."""
    rows, columns = code.shape
    for r in prange(rows):
        for _ in range(sweeps):
            changed = False
            for j in range(columns):
                if not kept[r, j]:
                    continue
                s, old = scale[r, j], code[r, j]
                best = np.rint(old + gradient[r, j] / (gram[j, j] * s))
                best = min(max(best, np.float32(0)), np.float32(top))
                if best != old:
                    step = s * (best - old)
                    code[r, j] = best
                    for i in range(columns):
                        gradient[r, i] -= gram[j, i] * step
                    changed = True
            if not changed:
                break


@cached_njit(parallel=True, fastmath=True)
def search(
    rows: Floats, importance: Floats, top: int, group: int, centre: int, steps: int, narrowest: float, scales: Floats,
    zeros: Floats,
) -> None:  # fmt: skip
    """Write the best of ``steps`` scales and, unless ``centre`` is 0 or more, of three zero points for each group."""
    groups = scales.shape[1]
    for n in prange(scales.size):
        r, g = n // groups, n % groups
        start, stop = g * group, min((g + 1) * group, rows.shape[1])
        low, high = np.float32(0), np.float32(0)
        for i in range(start, stop):
            low, high = min(low, rows[r, i]), max(high, rows[r, i])
        if centre >= 0:
            full = max(-low / np.float32(centre), high / np.float32(top - centre))
            first = last = centre
        else:
            full = (high - low) / np.float32(top)
            middle = int(np.rint(-low / full)) if full > TINY else 0
            first, last = max(0, middle - 1), min(top, middle + 1)
        scales[r, g], zeros[r, g] = full, np.float32((first + last) // 2)
        if full <= TINY:
            continue
        least = np.float32(np.inf)
        for k in range(1, steps + 1):
            s = full * np.float32(narrowest + (1 - narrowest) * k / steps)
            inverse = np.float32(1) / s
            for z in range(first, last + 1):
                loss = np.float32(0)
                bottom, ceiling = np.float32(-z), np.float32(top - z)
                for i in range(start, stop):
                    step = min(max(np.rint(rows[r, i] * inverse), bottom), ceiling)
                    loss += importance[r, i] * (rows[r, i] - s * step) ** 2
                if loss < least:
                    least = loss
                    scales[r, g], zeros[r, g] = s, np.float32(z)
