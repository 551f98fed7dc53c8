"""Planes: the arrays a compressed weight must store, and how many bits Shannon says each one needs.

Shannon, "A Mathematical Theory of Communication", 1948:  H = -sum_s p_s log2 p_s  bits a symbol, with p_s = c_s / n.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kogata.errors import DataError

MAX_ALPHABET = 1 << 16
PIECE = 1 << 20
BFLOAT16 = "bfloat16"
FLOAT_DTYPES = ("float16", "float32", "float64", BFLOAT16)
INTEGER_DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool")


class PlaneKind(StrEnum):
    """What the numbers of a plane mean, hence which symbol models fit it."""

    SYMBOLS = "symbols"
    MASK = "mask"
    FLOATS = "floats"
    INTEGERS = "integers"


@dataclass(frozen=True)
class PlaneSpec:
    """All a decoder must know besides the bytes. ``alphabet`` counts symbols, and is 0 where the plane has none."""

    kind: PlaneKind
    shape: tuple[int, ...]
    dtype: str
    alphabet: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def array_dtype(self) -> np.dtype[Any]:
        """The NumPy dtype that holds the plane: bfloat16, which NumPy lacks, is held as its bits in uint16."""
        return np.dtype(np.uint16 if self.dtype == BFLOAT16 else self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded array."""
        return self.size * self.array_dtype.itemsize


@dataclass(frozen=True)
class Plane:
    """One array to store. Build it with ``symbols``, ``mask``, ``floats`` or ``integers``, which check it.

    >>> plane = Plane.symbols(np.array([0, 1, 1, 0]), alphabet=2)
    >>> plane.entropy_bits()
    4.0
    """

    array: NDArray[Any]
    spec: PlaneSpec

    @classmethod
    def symbols(cls, array: NDArray[Any], alphabet: int) -> "Plane":
        """Integers in [0, alphabet), alphabet at most 65,536, of any shape and integer dtype (which decoding restores).

        Raises DataError if a value lies outside.
        """
        if not 1 <= alphabet <= MAX_ALPHABET:
            raise DataError(f"A plane of symbols has an alphabet of 1 to {MAX_ALPHABET} symbols, not {alphabet}.")
        if array.dtype.kind not in "iu":
            raise DataError(f"Symbols are integers, but the array holds {array.dtype}; cast it first.")
        if array.size and (int(array.min()) < 0 or int(array.max()) >= alphabet):
            raise DataError(f"Symbols must lie in [0, {alphabet}), but span [{array.min()}, {array.max()}].")
        return cls(_contiguous(array), PlaneSpec(PlaneKind.SYMBOLS, array.shape, array.dtype.name, alphabet))

    @classmethod
    def mask(cls, array: NDArray[np.bool_]) -> "Plane":
        """Booleans of any shape. Raises DataError for another dtype."""
        if array.dtype != np.bool_:
            raise DataError(f"A mask is boolean, but the array holds {array.dtype}; compare it with 0 first.")
        return cls(_contiguous(array), PlaneSpec(PlaneKind.MASK, array.shape, "bool"))

    @classmethod
    def floats(cls, array: NDArray[Any], dtype: str | None = None) -> "Plane":
        """Floats of any shape: float16, float32, float64, or bfloat16 as its bits in uint16 with ``dtype="bfloat16"``.

        Raises DataError for another dtype.
        """
        name = array.dtype.name if dtype is None else dtype
        spec = PlaneSpec(PlaneKind.FLOATS, array.shape, name)
        if name not in FLOAT_DTYPES or spec.array_dtype.name != array.dtype.name:
            raise DataError(
                f"A plane of floats holds {', '.join(FLOAT_DTYPES)} (bfloat16 as uint16), but got an array of "
                f"{array.dtype} named {name}."
            )
        return cls(_contiguous(array), spec)

    @classmethod
    def integers(cls, array: NDArray[Any]) -> "Plane":
        """Integers or booleans of any shape and width. Raises DataError for another dtype."""
        if array.dtype.kind not in "iub":
            raise DataError(f"A plane of integers holds an integer or boolean dtype, not {array.dtype}.")
        return cls(_contiguous(array), PlaneSpec(PlaneKind.INTEGERS, array.shape, array.dtype.name))

    def entropy_bits(self) -> float:
        """Zero-order Shannon entropy of the whole plane in bits, its histogram taken as known and free.

        For a mask that is n H(density). Floats are no symbols: theirs is the raw size, 8 bits a byte.
        """
        if self.spec.kind is PlaneKind.FLOATS:
            return 8.0 * self.spec.nbytes
        return entropy_bits(self.counts())

    def counts(self) -> NDArray[np.int64]:
        """How often each value occurs: per symbol (length ``alphabet``, or 2 for a mask), or per distinct integer."""
        match self.spec.kind:
            case PlaneKind.MASK:
                ones = int(np.count_nonzero(self.array))
                return np.array([self.array.size - ones, ones])
            case PlaneKind.SYMBOLS:
                # bincount casts to int64: in pieces, a large plane costs no eightfold copy
                flat = self.array.ravel()
                counts = np.zeros(self.spec.alphabet, np.int64)
                for start in range(0, flat.size, PIECE):
                    counts += np.bincount(flat[start : start + PIECE], minlength=self.spec.alphabet)
                return counts
            case _:
                return np.unique(self.array, return_counts=True)[1]


def entropy_bits(counts: NDArray[np.int64]) -> float:
    """n H of a histogram, in bits."""
    used = counts[counts > 0].astype(np.float64)
    total = used.sum()
    return float(np.abs(np.sum(used * np.log2(used / total)))) if used.size else 0.0


def _contiguous(array: NDArray[Any]) -> NDArray[Any]:
    """C order in the machine's byte order, so that every coder sees the same bytes for the same values."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).reshape(array.shape)
