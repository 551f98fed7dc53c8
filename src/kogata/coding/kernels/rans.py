"""Range asymmetric numeral systems over eight interleaved states (Duda, arXiv:1311.2540; Giesen, arXiv:1402.3392).

With f the frequency of s, c the sum of the frequencies before it and M = 2**12 their total, a state x in
[2**16, 2**32) is

    encode  x <- (x // f) M + c + x mod f      after moving 16 bits out while x >= f 2**20
    decode  x <- f (x // M) + x mod M - c      s being the one with c <= x mod M < c + f; then 16 bits in if x < 2**16

so one step never moves more than one word, and renormalisation needs no branch. Eight states are held in eight local
variables, because a single state would wait for its own table look-up and multiplication at every symbol.
"""

# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportReturnType=false
# Numba has no type stubs and its scalars are no ints to a type checker; the annotations are for readers and callers.

import numpy as np
from numba import njit, uint32, uint64
from numpy.typing import NDArray

from kogata.system.compiled import cached_njit

LANES = 8
SCALE_BITS = 12
SCALE = 1 << SCALE_BITS
LOWEST_STATE = 1 << 16


@cached_njit()
def histogram(symbols: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The counts of 256 symbols. Four tables are used in turn, so that equal neighbours need not wait for each other."""
    counts = np.zeros((4, 256), np.int64)
    whole = len(symbols) // 4 * 4
    for i in range(0, whole, 4):
        counts[0, symbols[i]] += 1
        counts[1, symbols[i + 1]] += 1
        counts[2, symbols[i + 2]] += 1
        counts[3, symbols[i + 3]] += 1
    for i in range(whole, len(symbols)):
        counts[0, symbols[i]] += 1
    return counts.sum(axis=0)


@njit(inline="always")
def _gain(count: int, freq: int) -> float:
    """By how much one unit more for a symbol with this count and frequency shortens the code, in nats."""
    return count * np.log((freq + 1) / freq)


@cached_njit()
def frequencies(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Frequencies that sum to ``SCALE``, each at least 1, with the least code length for these positive counts."""
    n = len(counts)
    freqs = np.empty(n, np.int64)
    gains = np.empty(n, np.float64)  # of one unit more
    losses = np.empty(n, np.float64)  # of one unit less
    total = counts.sum()
    for i in range(n):
        freqs[i] = max(1, int(np.rint(counts[i] * (SCALE / total))))
        gains[i] = _gain(counts[i], freqs[i])
        losses[i] = _gain(counts[i], freqs[i] - 1) if freqs[i] > 1 else np.inf
    excess = freqs.sum() - SCALE
    while True:
        # The two moves cannot undo each other, because each further unit gains less than the one before.
        taker, giver = gains.argmax(), losses.argmin()
        if excess == 0 and gains[taker] <= losses[giver]:
            return freqs
        up, down = excess <= 0, excess >= 0
        freqs[taker] += up
        freqs[giver] -= down
        excess += up - down
        for i in (taker, giver):
            gains[i] = _gain(counts[i], freqs[i])
            losses[i] = _gain(counts[i], freqs[i] - 1) if freqs[i] > 1 else np.inf


@njit(inline="always")
def _push(
    x: int, symbol: int, freqs: NDArray[np.uint32], starts: NDArray[np.uint32], words: NDArray[np.uint16], at: int
) -> tuple[int, int]:
    freq = freqs[symbol]
    words[at - uint64(1)] = np.uint16(x)
    full = uint32(x >> uint32(20)) >= freq
    at = at - uint64(full)
    x = uint32(x >> uint32(16)) if full else x
    quotient = uint32(x // freq)
    return uint32(uint32(quotient * uint32(SCALE - freq)) + x + starts[symbol]), at


@njit(inline="always")
def _pop(x: int, table: NDArray[np.uint32], words: NDArray[np.uint16], at: int) -> tuple[int, int, int]:
    entry = table[x & uint32(SCALE - 1)]
    offset = uint32(uint32(entry >> uint32(8)) & uint32(SCALE - 1))
    x = uint32(uint32(uint32(entry >> uint32(20)) * uint32(x >> uint32(SCALE_BITS))) + offset)
    refilled = uint32(uint32(x << uint32(16)) | uint32(words[at]))  # always loaded: a conditional load is a branch
    low = x < uint32(LOWEST_STATE)
    x = refilled if low else x
    return np.uint8(entry), x, at + uint64(low)


@cached_njit()
def encode(
    symbols: NDArray[np.uint8],
    freqs: NDArray[np.uint32],
    starts: NDArray[np.uint32],
    words: NDArray[np.uint16],
    states: NDArray[np.uint32],
) -> int:
    """Code ``symbols`` (a multiple of 8 of them) into the end of ``words``. Returns the index of the first word.

    ``states`` receives the eight final states, and ``words`` needs room for one word per symbol and one more.
    """
    x0 = x1 = x2 = x3 = x4 = x5 = x6 = x7 = uint32(LOWEST_STATE)
    at = uint64(len(words))
    for i in range(len(symbols) - LANES, -1, -LANES):
        x7, at = _push(x7, symbols[i + 7], freqs, starts, words, at)
        x6, at = _push(x6, symbols[i + 6], freqs, starts, words, at)
        x5, at = _push(x5, symbols[i + 5], freqs, starts, words, at)
        x4, at = _push(x4, symbols[i + 4], freqs, starts, words, at)
        x3, at = _push(x3, symbols[i + 3], freqs, starts, words, at)
        x2, at = _push(x2, symbols[i + 2], freqs, starts, words, at)
        x1, at = _push(x1, symbols[i + 1], freqs, starts, words, at)
        x0, at = _push(x0, symbols[i], freqs, starts, words, at)
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    states[4], states[5], states[6], states[7] = x4, x5, x6, x7
    return at


@cached_njit()
def decode(states: NDArray[np.uint32], words: NDArray[np.uint16], table: NDArray[np.uint32], out: NDArray[np.uint8]) -> int:
    """Fill ``out`` (a multiple of 8 symbols) and leave the final states in ``states``. Returns the words read, or -1.

    ``table`` (4096) packs frequency, x mod M - c and symbol in 12, 12 and 8 bits. The last 8 of ``words`` are
    padding; -1 means that the other words did not suffice.
    """
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    x4, x5, x6, x7 = states[4], states[5], states[6], states[7]
    at = uint64(0)
    end = uint64(len(words) - LANES)
    for i in range(0, len(out), LANES):
        if at > end:
            return -1
        out[i], x0, at = _pop(x0, table, words, at)
        out[i + 1], x1, at = _pop(x1, table, words, at)
        out[i + 2], x2, at = _pop(x2, table, words, at)
        out[i + 3], x3, at = _pop(x3, table, words, at)
        out[i + 4], x4, at = _pop(x4, table, words, at)
        out[i + 5], x5, at = _pop(x5, table, words, at)
        out[i + 6], x6, at = _pop(x6, table, words, at)
        out[i + 7], x7, at = _pop(x7, table, words, at)
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    states[4], states[5], states[6], states[7] = x4, x5, x6, x7
    return at
