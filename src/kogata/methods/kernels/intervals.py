"""Optimal one-dimensional k-means: the best split of sorted, weighted points into k intervals.

Wang and Song, "Ckmeans.1d.dp: Optimal k-means Clustering in One Dimension by Dynamic Programming", R Journal 3/2, 2011:
    D[c, j] = min_i D[c − 1, i − 1] + cost(i, j),  cost(i, j) = Σ w x² − (Σ w x)² / Σ w  over i … j.
The best i is nondecreasing in j, so divide and conquer fills each row of D: O(k n log n) in all.
"""

# numba's decorators are untyped
# pyright: reportUntypedFunctionDecorator=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
import numpy as np
from numpy.typing import NDArray

from kogata.system.compiled import cached_njit


@cached_njit()
def split(points_N: NDArray[np.float64], weights_N: NDArray[np.float64], clusters: int) -> NDArray[np.int64]:
    """The index of the first point of each interval, ``[clusters]``. ``points_N`` is ascending and N at least ``clusters``."""
    n = len(points_N)
    w = np.zeros(n + 1)
    wx = np.zeros(n + 1)
    wxx = np.zeros(n + 1)
    shift = points_N[n // 2]  # keeps the differences of prefix sums accurate
    for i in range(n):
        x = points_N[i] - shift
        w[i + 1] = w[i] + weights_N[i]
        wx[i + 1] = wx[i] + weights_N[i] * x
        wxx[i + 1] = wxx[i] + weights_N[i] * x * x
    best = np.empty(n)
    for j in range(n):
        best[j] = wxx[j + 1] - wx[j + 1] ** 2 / w[j + 1]
    first = np.zeros((clusters, n), np.int32)
    stack = np.empty((2 * n + 2, 4), np.int64)
    for c in range(1, clusters):
        row = np.full(n, np.inf)
        stack[0, 0], stack[0, 1], stack[0, 2], stack[0, 3] = (
            c,
            n - 1,
            c,
            n - 1,
        )  # fill row[lo .. hi], its best i within from .. to
        top = 1
        while top:
            top -= 1
            lo, hi, start, stop = stack[top, 0], stack[top, 1], stack[top, 2], stack[top, 3]
            if lo > hi:
                continue
            j = (lo + hi) // 2
            for i in range(start, min(j, stop) + 1):
                sx = wx[j + 1] - wx[i]
                cost = best[i - 1] + (wxx[j + 1] - wxx[i]) - sx * sx / (w[j + 1] - w[i])
                if cost < row[j]:
                    row[j] = cost
                    first[c, j] = i
            middle = np.int64(first[c, j])
            stack[top, 0], stack[top, 1], stack[top, 2], stack[top, 3] = lo, j - 1, start, middle
            stack[top + 1, 0], stack[top + 1, 1], stack[top + 1, 2], stack[top + 1, 3] = j + 1, hi, middle, stop
            top += 2
        best = row
    starts = np.zeros(clusters, np.int64)
    j = n - 1
    for c in range(clusters - 1, -1, -1):
        starts[c] = first[c, j]
        j = first[c, j] - 1
    return starts
