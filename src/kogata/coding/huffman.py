"""Canonical Huffman codes (Huffman, 1952), at most 16 bits long, with optimal lengths by package-merge.

Larmore and Hirschberg, "A fast algorithm for optimal length-limited Huffman codes", 1990: there is a coin of
denomination 2**-l for every symbol and length l, and the cheapest set of coins of total value n - 1 gives the code lengths.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kogata.coding.adaptive import Adaptive
from kogata.coding.budget import Budget, Cost
from kogata.coding.coder import Coder, alphabet_of, as_symbols, byte_array, damaged, from_symbols, read_varint, write_varint
from kogata.coding.plane import Plane, PlaneKind, PlaneSpec

MAX_LENGTH = 16
LENGTHS_ALPHABET = MAX_LENGTH + 1


class Huffman(Coder):
    """For symbols and masks. Stores the code length of every symbol (coded adaptively), then the codes."""

    name: ClassVar[str] = "huffman"
    tag: ClassVar[int] = 4

    def accepts(self, spec: PlaneSpec) -> bool:
        return spec.kind in (PlaneKind.SYMBOLS, PlaneKind.MASK)

    def encode(self, plane: Plane) -> bytes | None:
        from kogata.coding.kernels import bits

        if not plane.spec.size:
            return None  # no symbol to build a code from
        counts = plane.counts()
        lengths = code_lengths(counts)
        header = Adaptive().encode(Plane.symbols(lengths, LENGTHS_ALPHABET))
        if header is None:
            return None  # more lengths than the adaptive coder accepts, or lengths that it cannot compress
        prefix = write_varint(len(header)) + header
        if np.count_nonzero(lengths) == 1:
            return prefix  # one symbol alone needs no bits
        out = np.empty((int(counts @ lengths) + 7) // 8, np.uint8)
        bits.write_codes(as_symbols(plane)[0], _codes(lengths), lengths, out)
        return prefix + out.tobytes()

    def decode(self, data: bytes, spec: PlaneSpec, budget: Budget) -> NDArray[Any]:
        from kogata.coding.kernels import bits

        # The table has up to 2**16 entries; several arrays of its size and of the alphabet's are needed to build it.
        table = 64 * (alphabet_of(spec) + (1 << MAX_LENGTH))
        budget.charge("a Huffman code", Cost(scratch=2 * spec.size + len(data) + table, work=4 * spec.size + table))
        header_bytes, at = read_varint(data, 0)
        lengths_spec = PlaneSpec(PlaneKind.SYMBOLS, (alphabet_of(spec),), "uint8", LENGTHS_ALPHABET)
        lengths = Adaptive().decode(data[at : at + header_bytes], lengths_spec, budget)
        body = byte_array(data[at + header_bytes :])
        used = np.flatnonzero(lengths)
        if len(used) == 1:
            return from_symbols(np.full(spec.size, used[0], np.uint16), spec)
        if int(np.sum(1 << (MAX_LENGTH - lengths[used].astype(np.int64)))) != 1 << MAX_LENGTH:
            raise damaged(self, spec, "its code lengths are not those of a complete prefix code")
        symbols = np.empty(spec.size, np.uint16)
        if (bits.read_codes(body, _decoding_table(lengths), symbols) + 7) // 8 != len(body):
            raise damaged(self, spec, "its last symbol does not end where its bytes end")
        return from_symbols(symbols, spec)


def code_lengths(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Optimal code lengths of at most 16 bits: 0 for a symbol that never occurs, 1 for one that occurs alone."""
    lengths = np.zeros(len(counts), np.uint8)
    used = np.flatnonzero(counts)
    used = used[np.argsort(counts[used], kind="stable")]
    if len(used) == 1:
        lengths[used] = 1
        return lengths
    from kogata.coding.kernels import code_lengths as kernel

    lengths[used] = kernel.package_merge(counts[used], MAX_LENGTH)
    return lengths


def _canonical_order(lengths: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The used symbols, shorter codes first, then by symbol."""
    used = np.flatnonzero(lengths)
    return used[np.argsort(lengths[used], kind="stable")]


def _codes(lengths: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """The canonical code of every symbol, with its first bit lowest, as the bit stream needs it."""
    order = _canonical_order(lengths)
    shares = 1 << (MAX_LENGTH - lengths[order].astype(np.int64))
    codes = np.zeros(len(lengths), np.uint16)
    codes[order] = _reversed_bits(np.cumsum(shares) - shares)
    return codes


def _decoding_table(lengths: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """A table over windows as long as the longest code: symbol << 16 | length of the code at the window's low end."""
    order = _canonical_order(lengths)
    width = int(lengths.max())
    entries = (order << 16 | lengths[order]).astype(np.uint32)
    by_code = np.repeat(entries, 1 << (width - lengths[order].astype(np.int64)))
    return by_code[_reversed_bits(np.arange(1 << width)) >> (MAX_LENGTH - width)]


def _reversed_bits(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Reverse the bits of 16-bit numbers."""
    for shift, mask in ((1, 0x5555), (2, 0x3333), (4, 0x0F0F), (8, 0x00FF)):
        values = (values >> shift & mask) | (values & mask) << shift
    return values
