"""Static rANS: a symbol s costs log2(M / f_s) bits, a fractional number, with stored frequencies f.

Duda, "Asymmetric numeral systems", arXiv:1311.2540. Frequencies f are integers that sum to M = 4096 and minimise the
code length sum_s c_s log2(M / f_s). This cost is separable and convex, so frequencies that no move of one unit improves are
optimal.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kogata.coding.adaptive import Adaptive
from kogata.coding.budget import Budget, Cost
from kogata.coding.coder import Coder, alphabet_of, damaged, from_symbols, read_varint, write_varint
from kogata.coding.plane import Plane, PlaneKind, PlaneSpec

SCALE_BITS = 12
SCALE = 1 << SCALE_BITS
LANES = 8
LOWEST_STATE = 1 << 16
# A 32-bit entry of the decoding table has 8 bits for the symbol; larger alphabets are flat enough for Huffman codes.
MAX_ALPHABET = 256


class StaticRans(Coder):
    """For masks and alphabets up to 256: at most 0.1 % over the entropy, at hundreds of millions of symbols per second."""

    name: ClassVar[str] = "static rANS"
    tag: ClassVar[int] = 5

    def accepts(self, spec: PlaneSpec) -> bool:
        return spec.kind is PlaneKind.MASK or (spec.kind is PlaneKind.SYMBOLS and spec.alphabet <= MAX_ALPHABET)

    def encode(self, plane: Plane) -> bytes | None:
        from kogata.coding.kernels import rans

        symbols = plane.array.ravel().astype(np.uint8, copy=False)
        counts = rans.histogram(symbols)[: alphabet_of(plane.spec)]
        if np.count_nonzero(counts) < 2:
            return None  # a frequency of 4096 does not fit in 12 bits, and Huffman needs no bits for a single symbol
        freqs = normalised(counts)
        symbols = np.pad(symbols, (0, -len(symbols) % LANES), constant_values=counts.argmax())  # the cheapest symbol
        words = np.empty(len(symbols) + 1, np.uint16)
        states = np.empty(LANES, np.uint32)
        start = rans.encode(symbols, freqs.astype(np.uint32), _starts(freqs).astype(np.uint32), words, states)
        words = words[start:].astype("<u2", copy=False)
        return b"".join((_write_freqs(freqs), states.astype("<u4").tobytes(), words.data))

    def decode(self, data: bytes, spec: PlaneSpec, budget: Budget) -> NDArray[Any]:
        from kogata.coding.kernels import rans

        table = 64 * SCALE
        budget.charge("a rANS code", Cost(scratch=spec.size + 3 * len(data) + table, work=4 * spec.size + len(data) + table))
        freqs, at = _read_freqs(data, alphabet_of(spec), budget)
        if int(freqs.sum()) != SCALE:
            raise damaged(self, spec, f"its frequencies sum to {freqs.sum()} instead of {SCALE}")
        if len(data) < at + 4 * LANES or (len(data) - at) % 2:
            raise damaged(self, spec, "its words are cut off")
        states = np.frombuffer(data, "<u4", LANES, at).astype(np.uint32)
        words = np.frombuffer(data, "<u2", offset=at + 4 * LANES)
        words = np.concatenate([words, np.zeros(LANES, np.uint16)]).astype(np.uint16)
        symbols = np.empty(-(-spec.size // LANES) * LANES, np.uint8)
        n_read = rans.decode(states, words, _decoding_table(freqs), symbols)
        if n_read != len(words) - LANES or np.any(states != LOWEST_STATE):
            raise damaged(self, spec, "its last symbol does not end where its words end")
        return from_symbols(symbols[: spec.size], spec)


def normalised(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Frequencies that sum to 4096, at least 1 for every symbol that occurs, with the least code length for ``counts``."""
    from kogata.coding.kernels import rans

    used = np.flatnonzero(counts)
    out = np.zeros(len(counts), np.int64)
    out[used] = rans.frequencies(counts[used])
    return out


def _starts(freqs: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.cumsum(freqs) - freqs


def _decoding_table(freqs: NDArray[np.int64]) -> NDArray[np.uint32]:
    """The entry for every x mod M: frequency << 20 | (x mod M - start) << 8 | symbol."""
    symbols = np.repeat(np.arange(len(freqs)), freqs)
    offsets = np.arange(SCALE) - _starts(freqs)[symbols]
    return (freqs[symbols] << 20 | offsets << 8 | symbols).astype(np.uint32)


def _write_freqs(freqs: NDArray[np.int64]) -> bytes:
    """Encode frequencies: the bit length of each, coded adaptively, then all their bits below the leading one."""
    widths = np.frexp(freqs)[1].astype(np.uint8)  # the exponent of a whole number as a float is its bit length
    header = Adaptive().encode(Plane.symbols(widths, SCALE_BITS + 1))
    if header is None:
        raise AssertionError("at most 256 widths, most of them alike, always code in 5 bytes over their packed size")
    below, at = 0, 0
    for freq, width in zip(freqs.tolist(), widths.tolist(), strict=True):
        if width:
            below |= (freq - (1 << width - 1)) << at
            at += width - 1
    return write_varint(len(header)) + header + below.to_bytes((at + 7) // 8, "little")


def _read_freqs(data: bytes, alphabet: int, budget: Budget) -> tuple[NDArray[np.int64], int]:
    """Reverse ``_write_freqs``: the frequencies, and where the states begin."""
    header_bytes, at = read_varint(data, 0)
    widths_spec = PlaneSpec(PlaneKind.SYMBOLS, (alphabet,), "uint8", SCALE_BITS + 1)
    widths = Adaptive().decode(data[at : at + header_bytes], widths_spec, budget).tolist()
    at += header_bytes
    n_bytes = (sum(width - 1 for width in widths if width) + 7) // 8
    below = int.from_bytes(data[at : at + n_bytes], "little")
    freqs = np.zeros(alphabet, np.int64)
    for symbol, width in enumerate(widths):
        if width:
            freqs[symbol] = (1 << width - 1) | (below & (1 << width - 1) - 1)
            below >>= width - 1
    return freqs, at + n_bytes
