"""Planes: the arrays that a compressed weight must store, and their Shannon entropy.

Shannon, "A Mathematical Theory of Communication", 1948:  H = -sum_s p_s log2 p_s  bits per symbol, with p_s = c_s / n.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kogata.errors import DataError

MAX_ALPHABET = 1 << 16
MAX_AXES = 32  # NumPy and PyTorch allow 64
PIECE = 1 << 20
BFLOAT16 = "bfloat16"
FLOAT_DTYPES = ("float16", "float32", "float64", BFLOAT16)
INTEGER_DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool")


def checked_shape(value: object, least: int = 0) -> tuple[int, ...]:
    """A shape that a file states. Raises ValueError unless it is a list of at most 32 whole numbers from ``least`` on.

    >>> checked_shape([3, 4])
    (3, 4)
    """
    sizes = cast("Sequence[object]", value) if isinstance(value, list | tuple) else None
    if sizes is None or len(sizes) > MAX_AXES or any(type(size) is not int or size < least for size in sizes):
        raise ValueError(f"shape {str(value)[:80]}, expected at most {MAX_AXES} whole numbers from {least} on")
    return tuple(cast("Sequence[int]", sizes))


class PlaneKind(StrEnum):
    """The meaning of a plane's numbers, which decides the symbol models that fit."""

    SYMBOLS = "symbols"
    MASK = "mask"
    FLOATS = "floats"
    INTEGERS = "integers"


@dataclass(frozen=True)
class PlaneSpec:
    """All that a decoder needs besides the bytes. ``alphabet`` is the number of symbols, 0 for planes of other kinds."""

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
    """One array to store. Build it with ``symbols``, ``mask``, ``floats`` or ``integers``, which validate the array.

    >>> plane = Plane.symbols(np.array([0, 1, 1, 0]), alphabet=2)
    >>> plane.entropy_bits()
    4.0
    """

    array: NDArray[Any]
    spec: PlaneSpec

    @classmethod
    def symbols(cls, array: NDArray[Any], alphabet: int) -> "Plane":
        """A plane of integers in [0, alphabet), of any shape and integer dtype, which decoding restores.

        ``alphabet`` is at most 65,536. Raises DataError for other dtypes and values.
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
        """A plane of booleans of any shape. Raises DataError for another dtype."""
        if array.dtype != np.bool_:
            raise DataError(f"A mask is boolean, but the array holds {array.dtype}; compare it with 0 first.")
        return cls(_contiguous(array), PlaneSpec(PlaneKind.MASK, array.shape, "bool"))

    @classmethod
    def floats(cls, array: NDArray[Any], dtype: str | None = None) -> "Plane":
        """A plane of floats of any shape: float16, float32, float64; or bfloat16 as uint16 bits with ``dtype="bfloat16"``.

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
        """A plane of integers or booleans of any shape and width. Raises DataError for another dtype."""
        if array.dtype.kind not in "iub":
            raise DataError(f"A plane of integers holds an integer or boolean dtype, not {array.dtype}.")
        return cls(_contiguous(array), PlaneSpec(PlaneKind.INTEGERS, array.shape, array.dtype.name))

    def entropy_bits(self) -> float:
        """Zero-order Shannon entropy of the whole plane in bits, without the cost of storing its histogram.

        For a mask it is n H(density). For floats it is the raw size, 8 bits per byte.
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
                # in pieces, because bincount copies its input to int64, eight times the size of uint8
                flat = self.array.ravel()
                counts = np.zeros(self.spec.alphabet, np.int64)
                for start in range(0, flat.size, PIECE):
                    counts += np.bincount(flat[start : start + PIECE], minlength=self.spec.alphabet)
                return counts
            case _:
                return np.unique(self.array, return_counts=True)[1]


def entropy_bits(counts: NDArray[np.int64]) -> float:
    """Entropy n H of all elements with this histogram, in bits."""
    used = counts[counts > 0].astype(np.float64)
    total = used.sum()
    return float(np.abs(np.sum(used * np.log2(used / total)))) if used.size else 0.0


def _contiguous(array: NDArray[Any]) -> NDArray[Any]:
    """C order in the machine's byte order, so that every coder sees the same bytes for the same values."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).reshape(array.shape)
