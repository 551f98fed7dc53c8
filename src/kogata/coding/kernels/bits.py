"""Bit streams, least significant bit first: fixed-width fields and prefix codes."""

# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportReturnType=false
# Numba has no type stubs and its scalars are no ints to a type checker; the annotations are for readers and callers.

import numpy as np
from numba import uint64
from numpy.typing import NDArray

from kogata.system.compiled import cached_njit


@cached_njit()
def write_codes(
    symbols: NDArray[np.uint16], codes: NDArray[np.uint16], lengths: NDArray[np.uint8], out: NDArray[np.uint8]
) -> None:
    """Write codes[s], of lengths[s] <= 16 bits, for every symbol s into ``out``, which must have the exact length."""
    window = uint64(0)
    held = uint64(0)
    at = 0
    for symbol in symbols:
        window |= uint64(codes[symbol]) << held
        held += uint64(lengths[symbol])
        while held >= uint64(8):
            out[at] = window & uint64(255)
            window >>= uint64(8)
            held -= uint64(8)
            at += 1
    if held > uint64(0):
        out[at] = window & uint64(255)


@cached_njit()
def read_codes(data: NDArray[np.uint8], table: NDArray[np.uint32], out: NDArray[np.uint16]) -> int:
    """Decode ``out`` with a table of 2**width entries ``symbol << 16 | length``. Returns the number of bits read.

    Past the end of ``data`` zeros are read.
    """
    mask = uint64(len(table) - 1)
    window = uint64(0)
    held = uint64(0)
    at = 0
    n_read = 0
    for i in range(len(out)):
        while held <= uint64(48):
            if at < len(data):
                window |= uint64(data[at]) << held
            at += 1
            held += uint64(8)
        entry = uint64(table[window & mask])
        length = entry & uint64(0xFFFF)
        out[i] = entry >> uint64(16)
        window >>= length
        held -= length
        n_read += length
    return n_read


@cached_njit()
def pack(symbols: NDArray[np.uint16], width: int, out: NDArray[np.uint8]) -> None:
    """Write every symbol in ``width`` bits (0 to 16) into ``out``, which must have the exact length."""
    window = uint64(0)
    held = uint64(0)
    at = 0
    for symbol in symbols:
        window |= uint64(symbol) << held
        held += uint64(width)
        while held >= uint64(8):
            out[at] = window & uint64(255)
            window >>= uint64(8)
            held -= uint64(8)
            at += 1
    if held > uint64(0):
        out[at] = window & uint64(255)


@cached_njit()
def unpack(data: NDArray[np.uint8], width: int, out: NDArray[np.uint16]) -> None:
    """Read ``width`` bits (0 to 16) for every element of ``out`` from ``data``, which must be long enough."""
    mask = (uint64(1) << uint64(width)) - uint64(1)
    window = uint64(0)
    held = uint64(0)
    at = 0
    for i in range(len(out)):
        while held < uint64(width):
            window |= uint64(data[at]) << held
            at += 1
            held += uint64(8)
        out[i] = np.uint16(window & mask)
        window >>= uint64(width)
        held -= uint64(width)
