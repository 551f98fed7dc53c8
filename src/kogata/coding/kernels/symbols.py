"""The context model of symbols [rows, columns]: previous symbols of the row, the symbol above, and histograms so far.

A symbol is coded bit by bit from its top bit, and every context keeps one counter for each node of this binary tree.
"""

# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportReturnType=false
# Numba has no type stubs and its scalars are no ints to a type checker; the annotations are for readers and callers.

import numpy as np
from numba import int64
from numpy.typing import NDArray

from kogata.coding.kernels.arithmetic import FRESH, code, finish, learn, probability, start
from kogata.coding.kernels.mixing import adjust, mixed
from kogata.system.compiled import cached_njit

MEMORY = 255  # bits after which a counter begins to forget
RECENT_MEMORY = 30
RATE = 6
N_INPUTS = 6
FIRST_WEIGHT = (1 << 16) // N_INPUTS
COLUMN_COUNTERS = 1 << 22  # limit of counters for columns; further columns share them


@cached_njit()
def code_symbols(
    symbols: NDArray[np.uint16],
    alphabet: int,
    width: int,
    squash: NDArray[np.int64],
    stretch: NDArray[np.int64],
    data: NDArray[np.uint8],
    decoding: bool,
) -> int:
    """Write or read ``symbols`` [rows, columns] of ``width`` <= 8 bits. Returns the length, or -1 if it did not fit."""
    span = 1 << width
    n_rows, n_columns = symbols.shape
    n_own_columns = min(n_columns, COLUMN_COUNTERS >> width)
    state = start(data, decoding)
    recent = np.full(span, FRESH, np.uint32)
    own_row = np.full(span, FRESH, np.uint32)
    after_left = np.full(span * span, FRESH, np.uint32)
    after_left2 = np.full(span * span, FRESH, np.uint32)
    below = np.full(span * span, FRESH, np.uint32)
    own_column = np.full(span * n_own_columns, FRESH, np.uint32)
    inputs = np.zeros(N_INPUTS, np.int64)
    weights = np.full(N_INPUTS, FIRST_WEIGHT, np.int64)
    left = left2 = int64(0)
    for r in range(n_rows):
        own_row[:] = FRESH
        for c in range(n_columns):
            symbol = int64(symbols[r, c])
            above = int64(symbols[r - 1, c]) if r else 0
            column = c % n_own_columns
            node = 1
            for level in range(width - 1, -1, -1):
                bit = (symbol >> level) & 1
                # A branch that holds no symbol of the alphabet is never taken and costs nothing.
                if ((((node << 1) | 1) << level) - span) < alphabet:
                    at_left = left << width | node
                    at_left2 = left2 << width | node
                    at_above = above << width | node
                    at_column = column << width | node
                    inputs[0] = stretch[probability(recent[node])]
                    inputs[1] = stretch[probability(own_row[node])]
                    inputs[2] = stretch[probability(after_left[at_left])]
                    inputs[3] = stretch[probability(after_left2[at_left2])]
                    inputs[4] = stretch[probability(below[at_above])]
                    inputs[5] = stretch[probability(own_column[at_column])]
                    p = mixed(inputs, weights, squash)
                    bit = code(state, data, p, bit)
                    adjust(inputs, weights, (bit << 16) - p, RATE)
                    recent[node] = learn(recent[node], bit, RECENT_MEMORY)
                    own_row[node] = learn(own_row[node], bit, MEMORY)
                    after_left[at_left] = learn(after_left[at_left], bit, MEMORY)
                    after_left2[at_left2] = learn(after_left2[at_left2], bit, MEMORY)
                    below[at_above] = learn(below[at_above], bit, MEMORY)
                    own_column[at_column] = learn(own_column[at_column], bit, MEMORY)
                else:
                    bit = 0
                node = (node << 1) | bit
            left2 = left
            left = node - span
            symbols[r, c] = left
    return 0 if decoding else finish(state, data)
