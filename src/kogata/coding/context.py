"""Context mixing: several models predict each bit, and a mixer learns while coding which of them to believe.

Mahoney, "Adaptive Weighing of Context Models for Lossless Data Compression", 2005. All arithmetic is in integers, so that every
machine decodes alike. The models are in ``kernels/mask.py`` and ``kernels/symbols.py``.
"""

import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kogata.coding.budget import Budget, Cost
from kogata.coding.coder import Coder, alphabet_of, byte_array, damaged, from_symbols, read_varint, write_varint
from kogata.coding.packed import packed_bytes
from kogata.coding.plane import Plane, PlaneKind, PlaneSpec

# Coding or decoding one binary decision takes about 40 ns, so this limit keeps a plane under a second.
MAX_DECISIONS = 1 << 24
# There is a counter for every pair of symbols; larger alphabets would need more counters than planes have elements.
MAX_ALPHABET = 256
# Cells of a mask on which the scanning orders are compared.
TRIAL_CELLS = 1 << 18


class Context(Coder):
    """For masks and symbols; chosen only if it saves enough bytes to justify its decoding time."""

    name: ClassVar[str] = "context mixing"
    tag: ClassVar[int] = 8
    # It decodes one bit in about 40 ns, static rANS a whole symbol in 2 ns: a gain under 2 % does not justify that.
    required_gain: ClassVar[float] = 0.02

    def accepts(self, spec: PlaneSpec) -> bool:
        if spec.kind not in (PlaneKind.MASK, PlaneKind.SYMBOLS):
            return False
        alphabet = alphabet_of(spec)
        return alphabet <= MAX_ALPHABET and 0 < spec.size * (alphabet - 1).bit_length() <= MAX_DECISIONS

    def encode(self, plane: Plane) -> bytes | None:
        matrix_RC = plane.array.reshape(_matrix_shape(plane.spec))
        if plane.spec.kind is PlaneKind.MASK:
            return _encode_mask(matrix_RC, math.prod(plane.spec.shape[2:]))
        data = np.empty(packed_bytes(plane.spec) + 4, np.uint8)
        length = _code_symbols(matrix_RC.astype(np.uint16), plane.spec.alphabet, data, decoding=False)
        return None if length < 0 else data[:length].tobytes().rstrip(b"\0")

    def decode(self, data: bytes, spec: PlaneSpec, budget: Budget) -> NDArray[Any]:
        budget.charge("context mixing", _cost(spec))
        if spec.kind is PlaneKind.SYMBOLS:
            symbols_RC = np.zeros(_matrix_shape(spec), np.uint16)
            _code_symbols(symbols_RC, spec.alphabet, byte_array(data), decoding=True)
            return from_symbols(symbols_RC, spec)
        scan, at = read_varint(data, 0)
        stride, transposed = scan // 2, scan % 2 == 1
        shape = _matrix_shape(spec)[::-1] if transposed else _matrix_shape(spec)
        if not 1 <= stride <= max(1, shape[1] // 2):
            raise damaged(self, spec, f"a stride of {stride} does not fit {shape[1]} columns")
        _, mask_RC = _code_mask(np.zeros(shape, np.bool_), stride, byte_array(data[at:]), decoding=True)
        return (mask_RC.T if transposed else mask_RC).astype(np.bool_, order="C").reshape(spec.shape)


def _matrix_shape(spec: PlaneSpec) -> tuple[int, int]:
    """The plane as a matrix (outputs, inputs); a vector is one row."""
    rows = spec.shape[0] if len(spec.shape) > 1 else 1
    return rows, spec.size // rows


def _cost(spec: PlaneSpec) -> Cost:
    """The temporary memory of the kernels, and 64 operations for each binary decision."""
    rows, columns = _matrix_shape(spec)
    width = (alphabet_of(spec) - 1).bit_length()
    work = 64 * spec.size * width
    if spec.kind is PlaneKind.SYMBOLS:
        counters = (3 << 2 * width) + min(columns << width, 1 << 22)
        return Cost(scratch=4 * counters + 2 * spec.size, work=work + counters + (rows << width))
    margins = 3 * (spec.size + 2 * max(rows, columns)) + 8 * (rows + columns)  # at the largest stride; by rows or by columns
    return Cost(scratch=margins + 24 * (max(rows, columns) + 4) + 4 * max(rows, columns) + (1 << 16), work=work)


def _encode_mask(mask_RC: NDArray[np.bool_], taps: int) -> bytes | None:
    """Code a mask by rows or by columns, with the neighbour stride that gives the fewest bytes on a first part of the mask."""
    trials: list[tuple[int, int, bool]] = []
    for transposed in (False, True):
        matrix = mask_RC.T if transposed else mask_RC
        part = matrix[: max(1, TRIAL_CELLS // matrix.shape[1]), :TRIAL_CELLS]
        strides = {1, _period(part.sum(axis=0)), 1 if transposed else taps}
        for stride in sorted(stride for stride in strides if stride <= max(1, part.shape[1] // 2)):
            data = np.empty(2 * part.size + 4, np.uint8)
            length, _ = _code_mask(part, stride, data, decoding=False)
            # Scaled to the whole mask, because the trials have different numbers of cells.
            trials.append((length * mask_RC.size // part.size, stride, transposed))
    _, stride, transposed = min(trials)
    data = np.empty((mask_RC.size + 7) // 8 + 4, np.uint8)
    length, _ = _code_mask(mask_RC.T if transposed else mask_RC, stride, data, decoding=False)
    return None if length < 0 else write_varint(2 * stride + transposed) + data[:length].tobytes().rstrip(b"\0")


def _period(counts_C: NDArray[np.int64]) -> int:
    """The lag of the highest peak of the autocorrelation of column densities; 1 if there is none."""
    n = len(counts_C)
    spectrum = np.fft.rfft(counts_C - counts_C.mean(), 2 * n)
    similarity = np.fft.irfft(np.abs(spectrum) ** 2)[: n // 2 + 1]
    inner = similarity[2:-1]
    peaks = np.flatnonzero((inner > similarity[1:-2]) & (inner >= similarity[3:])) + 2
    return int(peaks[np.argmax(similarity[peaks])]) if len(peaks) else 1


def _code_mask(
    mask_RC: NDArray[np.bool_], stride: int, data: NDArray[np.uint8], decoding: bool
) -> tuple[int, NDArray[np.uint8]]:
    """The length in ``data`` (-1 if it did not fit), and the mask, which decoding fills in."""
    from kogata.coding.kernels import mask, mixing

    rows, columns = mask_RC.shape
    margin = 2 * stride + 2
    cells = np.zeros((rows + 2, columns + 2 * margin), np.uint8)
    inside = cells[2:, margin : margin + columns]
    inside[:] = mask_RC
    length = mask.code_mask(cells, columns, stride, *mixing.logistic_tables(), data, decoding)
    return length, inside


def _code_symbols(symbols_RC: NDArray[np.uint16], alphabet: int, data: NDArray[np.uint8], decoding: bool) -> int:
    from kogata.coding.kernels import mixing, symbols

    width = (alphabet - 1).bit_length()
    return symbols.code_symbols(symbols_RC, alphabet, width, *mixing.logistic_tables(), data, decoding)
