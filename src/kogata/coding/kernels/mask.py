"""The context model of masks [rows, columns]: the densities of the column, the row and the neighbourhood so far.

Columns of a pruned layer differ in density (an input that is always 0 keeps no weight), and so do rows. If both were
independent, P(cell) would be P(column) P(row) / P(any). That estimate is one prediction, and it is part of the context of
counters that are indexed by the neighbours. ``stride`` is the period of the inputs in columns (the width of an image, the taps
of a kernel), so that cells at +-stride are neighbours too; a mask without such a period has stride 1.
"""

# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportReturnType=false
# Numba has no type stubs and its scalars are no ints to a type checker; the annotations are for readers and callers.

import numpy as np
from numba import int64, njit
from numpy.typing import NDArray

from kogata.coding.kernels.arithmetic import FRESH, code, finish, learn, probability, start
from kogata.coding.kernels.mixing import ODDS_LIMIT, adjust, mixed
from kogata.system.compiled import cached_njit

MEMORY = 1000  # bits after which a counter begins to forget
COLUMN_MEMORY = 60  # shorter, because the density within a column can change from one end to the other
RATE = 6
LEVELS = 64  # space for the levels of a quantized estimate: 48 steps of 1/2 in log-odds
N_INPUTS = 6
FIRST_WEIGHT = (1 << 16) // N_INPUTS


@njit(inline="always")
def _within(p: int) -> int:
    return min(max(p, 1), 65535)


@njit(inline="always")
def _estimates(column: int, around: int, row: int, expected: int, r: int, c: int, density: int) -> tuple[int, int, int]:
    """Probabilities of a one, in 1/65536, by column and row, by row alone, and by column alone.

    Counts of ones are shrunk towards a prior: the column's count towards that of its neighbours (``around``, the ones in six
    columns), which is shrunk towards the density of the mask so far. ``expected`` is the number of ones that an average row
    would have up to this column. It and the density are both 0 at the start of a row while the mask has no more than one one in
    65536 cells; the ratio of the two counts is then undefined, and a divisor of 1 keeps it finite.
    """
    by_neighbours = ((around << 16) + 60 * density) // (6 * r + 60)
    by_column = ((column << 16) + 16 * by_neighbours) // (r + 16)
    by_both = by_column * ((row << 16) + 8 * density) // max(expected + 8 * density, 1)
    by_row = ((row << 16) + 20 * density) // (c + 20)
    return _within(by_both), _within(by_row), by_column


@njit(inline="always")
def _neighbourhoods(cells: NDArray[np.uint8], r: int, k: int, stride: int) -> tuple[int, int, int]:
    """Three contexts from the cells already coded, as small integers: adjacent cells, cells at the stride, number of ones."""
    row, up = cells[r], cells[r - 1]
    left, left2 = int64(row[k - 1]), int64(row[k - 2])
    north, north_west = int64(row[k - stride]), int64(row[k - stride - 1])
    north_east = int64(row[k - stride + 1]) if stride > 1 else 0  # at stride 1 this would be the cell to be coded
    north2 = int64(row[k - 2 * stride - 1]) + int64(row[k - 2 * stride]) + int64(row[k - 2 * stride + 1])
    around = left | left2 << 1 | int64(up[k]) << 2 | int64(cells[r - 2, k]) << 3 | int64(up[k - 1]) << 4
    around |= int64(up[k + 1]) << 5
    grid = left | north << 1 | north_east << 2 | north_west << 3 | left2 << 4
    n_set = left + left2 + int64(row[k - 3]) + north + north_east + north_west + north2
    return around, grid, n_set << 2 | north << 1 | left


@cached_njit()
def code_mask(
    cells: NDArray[np.uint8],
    n_columns: int,
    stride: int,
    squash: NDArray[np.int64],
    stretch: NDArray[np.int64],
    data: NDArray[np.uint8],
    decoding: bool,
) -> int:
    """Write or read a mask. Returns the length in ``data``, or -1 if it did not fit.

    ``cells`` (uint8) is the mask with two rows of zeros above, and 2 stride + 2 columns of zeros on either side.
    """
    margin = (cells.shape[1] - n_columns) // 2
    state = start(data, decoding)
    ones = np.zeros(cells.shape[1], np.int64)
    total = int64(0)
    by_column_only = np.full(n_columns, FRESH, np.uint32)
    by_around = np.full(64 * LEVELS, FRESH, np.uint32)
    by_grid = np.full(32 * LEVELS, FRESH, np.uint32)
    by_n_set = np.full(40 * LEVELS, FRESH, np.uint32)
    inputs = np.zeros(N_INPUTS, np.int64)
    weights = np.full(N_INPUTS, FIRST_WEIGHT, np.int64)
    for r in range(len(cells) - 2):
        row = int64(0)
        expected = int64(0)
        for c in range(n_columns):
            k = c + margin
            density = ((total + 1) << 16) // (r * n_columns + c + 16)
            beside = ones[k - 1] + ones[k + 1] + ones[k - stride] + ones[k + stride] + 2 * ones[k]
            by_both, by_row, share = _estimates(ones[k], beside, row, expected, r, c, density)
            level = (stretch[by_both] + ODDS_LIMIT) >> 7
            around, grid, n_set = _neighbourhoods(cells, r + 2, k, stride)
            around, grid, n_set = around * LEVELS + level, grid * LEVELS + level, n_set * LEVELS + level
            inputs[0] = stretch[by_both]
            inputs[1] = stretch[by_row]
            inputs[2] = stretch[probability(by_column_only[c])]
            inputs[3] = stretch[probability(by_around[around])]
            inputs[4] = stretch[probability(by_grid[grid])]
            inputs[5] = stretch[probability(by_n_set[n_set])]
            p = mixed(inputs, weights, squash)
            bit = code(state, data, p, int64(cells[r + 2, k]))
            cells[r + 2, k] = bit
            adjust(inputs, weights, (bit << 16) - p, RATE)
            by_column_only[c] = learn(by_column_only[c], bit, COLUMN_MEMORY)
            by_around[around] = learn(by_around[around], bit, MEMORY)
            by_grid[grid] = learn(by_grid[grid], bit, MEMORY)
            by_n_set[n_set] = learn(by_n_set[n_set], bit, MEMORY)
            total += bit
            row += bit
            expected += share
        for c in range(n_columns):
            ones[c + margin] += cells[r + 2, c + margin]
    return 0 if decoding else finish(state, data)
