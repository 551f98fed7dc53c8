"""Binary arithmetic coding with adaptive probabilities, integers only: every machine computes the same bits.

Coder: the carry-less range coder of Mahoney's PAQ ("Adaptive Weighing of Context Models for Lossless Data
Compression", 2005). The interval [low, high] of 32 bits is cut at the probability of a one, and leading bytes are
written once they agree.
Counter: the probability after n bits is that of Krichevsky and Trofimov (1981), p <- p + (bit - p) / (n + 2), until n
reaches a limit; from then on old bits are forgotten exponentially.

A counter is a uint32: 22 bits of probability, 10 bits of n. All other arithmetic is in int64 and cannot
overflow.
"""

# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportReturnType=false
# Numba has no type stubs and its scalars are no ints to a type checker; the annotations are for readers and callers.

import numpy as np
from numba import int64, njit, uint32
from numpy.typing import NDArray

from kogata.system.compiled import cached_njit

PROBABILITY_BITS = 16  # precision of the probabilities given to the coder: 1 to 65535, out of 65536
FRESH = np.uint32(1 << 31)  # a counter before the first bit: p = 1/2, n = 0
_UNIT = 1 << 22
_RECIPROCALS = np.array([(1 << 16) // (n + 2) for n in range(1024)], np.int64)

# Indices into the state of a coder.
LOW, HIGH, CODE, AT, DECODING = range(5)


@njit(inline="always")
def probability(counter: int) -> int:
    """Probability of a one in 1/65536, never 0 or 1."""
    return min(max(int64(counter) >> 16, 1), 65535)


@njit(inline="always")
def learn(counter: int, bit: int, limit: int) -> int:
    """The counter after ``bit``. ``limit`` (below 1024) bounds n, after which older bits are forgotten."""
    seen = int64(counter) & 1023
    p = int64(counter) >> 10
    p += (((bit << 22) - bit - p) * _RECIPROCALS[seen]) >> 16
    return uint32((p << 10) | min(seen + 1, limit))


@cached_njit()
def start(data: NDArray[np.uint8], decoding: bool) -> NDArray[np.int64]:
    """The initial state of a coder that writes to or reads from ``data``."""
    state = np.zeros(5, np.int64)
    state[HIGH] = 0xFFFFFFFF
    state[DECODING] = decoding
    if decoding:
        for i in range(4):
            state[CODE] = (state[CODE] << 8) | (int64(data[i]) if i < len(data) else 0)
        state[AT] = 4
    return state


@njit(inline="always")
def code(state: NDArray[np.int64], data: NDArray[np.uint8], p: int, bit: int) -> int:
    """Write or read one bit, which is a one with probability p / 65536. Returns the bit.

    A reader gets zeros past the end of ``data``. A writer drops bytes that do not fit, but AT still counts them.
    """
    low, high = state[LOW], state[HIGH]
    cut = low + (((high - low) * p) >> PROBABILITY_BITS)
    if state[DECODING]:
        bit = int64(state[CODE] <= cut)
    if bit:
        high = cut
    else:
        low = cut + 1
    while (low ^ high) >> 24 == 0:
        at = state[AT]
        if state[DECODING]:
            byte = int64(data[at]) if at < len(data) else 0
            state[CODE] = ((state[CODE] << 8) & 0xFFFFFFFF) | byte
        elif at < len(data):
            data[at] = high >> 24
        state[AT] = at + 1
        low = (low << 8) & 0xFFFFFFFF
        high = ((high << 8) & 0xFFFFFFFF) | 255
    state[LOW], state[HIGH] = low, high
    return bit


@cached_njit()
def finish(state: NDArray[np.int64], data: NDArray[np.uint8]) -> int:
    """Write the fewest bytes that, followed by zeros, lie in the interval. Returns the length, or -1 if it did not fit."""
    for n_bytes in range(5):
        shift = 32 - 8 * n_bytes
        value = ((state[LOW] + (1 << shift) - 1) >> shift) << shift
        if value <= state[HIGH]:
            break
    at = state[AT]
    if at + n_bytes > len(data):
        return -1
    for i in range(n_bytes):
        data[at + i] = (value >> (24 - 8 * i)) & 255
    return at + n_bytes


@cached_njit()
def code_tree(symbols: NDArray[np.uint16], width: int, alphabet: int, data: NDArray[np.uint8], decoding: bool) -> int:
    """Write or read ``symbols`` bit by bit along a binary tree with one counter per node. Returns the length or -1."""
    counters = np.full(1 << width, FRESH, np.uint32)
    state = start(data, decoding)
    for i in range(len(symbols)):
        symbol = int64(symbols[i])
        node = 1
        for level in range(width - 1, -1, -1):
            bit = (symbol >> level) & 1
            # A branch that holds no symbol of the alphabet is never taken and costs nothing.
            if ((((node << 1) | 1) << level) - (1 << width)) < alphabet:
                bit = code(state, data, probability(counters[node]), bit)
                counters[node] = learn(counters[node], bit, 1023)
            else:
                bit = 0
            node = (node << 1) | bit
        symbols[i] = node - (1 << width)
    return 0 if decoding else finish(state, data)
