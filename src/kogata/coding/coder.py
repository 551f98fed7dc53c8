"""The base class of coders, and the choice of the coder with the smallest result."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kogata.coding.budget import Budget
from kogata.coding.plane import Plane, PlaneKind, PlaneSpec
from kogata.errors import FileFormatError


class Coder(ABC):
    """One way to write a plane as bytes. Coders hold no state: the same plane gives the same bytes, always."""

    name: ClassVar[str]
    tag: ClassVar[int]  # the byte that identifies this coder in files; never changed or reused
    required_gain: ClassVar[float] = 0.0  # the fraction of bytes that it must save over the best earlier coder

    @abstractmethod
    def accepts(self, spec: PlaneSpec) -> bool:
        """Whether planes of this spec can be coded at all."""

    @abstractmethod
    def encode(self, plane: Plane) -> bytes | None:
        """The plane as bytes, or None if this coder cannot code it or another one is known to be better."""

    @abstractmethod
    def decode(self, data: bytes, spec: PlaneSpec, budget: Budget) -> NDArray[Any]:
        """Decode the array that ``spec`` describes, after charging ``budget`` for the temporary memory and the work.

        The array itself is charged by the caller. Raises FileFormatError on malformed bytes, or when the budget is exhausted.
        """


def encode_smallest(plane: Plane, coders: tuple[Coder, ...]) -> tuple[Coder, bytes]:
    """The coder that needs the fewest bytes, and its tag followed by these bytes. The earlier coder wins a tie."""
    best: tuple[Coder, bytes] | None = None
    for coder in coders:
        body = coder.encode(plane) if coder.accepts(plane.spec) else None
        if body is not None and (best is None or len(body) + 1 < len(best[1]) * (1 - coder.required_gain)):
            best = coder, bytes([coder.tag]) + body
    if best is None:
        names = ", ".join(coder.name for coder in coders)
        raise ValueError(f"None of the coders ({names}) can code a plane of {plane.spec}.")
    return best


def decode_tagged(data: bytes, spec: PlaneSpec, coders: tuple[Coder, ...], budget: Budget) -> NDArray[Any]:
    """Reverse ``encode_smallest``. Raises FileFormatError on malformed bytes, or when the budget is exhausted."""
    coder = next((coder for coder in coders if data and coder.tag == data[0] and coder.accepts(spec)), None)
    if coder is None:
        found = f"coder {data[0]}" if data else "no bytes"
        raise FileFormatError(
            f"A {spec.kind} plane of shape {spec.shape} has {found}, which this version cannot decode; "
            "the file is damaged or newer than this program."
        )
    return coder.decode(data[1:], spec, budget)


def damaged(coder: Coder, spec: PlaneSpec, why: str) -> FileFormatError:
    """An error for bytes that ``coder`` cannot have written."""
    return FileFormatError(
        f"A {spec.kind} plane of shape {spec.shape} coded as {coder.name} is damaged: {why}. Get the file again."
    )


def as_symbols(plane: Plane) -> tuple[NDArray[np.uint16], int]:
    """A mask or symbol plane as a flat array of uint16 and the size of its alphabet, which is 2 for a mask."""
    return plane.array.ravel().astype(np.uint16), alphabet_of(plane.spec)


def alphabet_of(spec: PlaneSpec) -> int:
    """Number of symbols of a mask or symbol plane."""
    return 2 if spec.kind is PlaneKind.MASK else spec.alphabet


def from_symbols(symbols: NDArray[Any], spec: PlaneSpec) -> NDArray[Any]:
    """Reverse ``as_symbols``."""
    return symbols.astype(spec.array_dtype, copy=False).reshape(spec.shape)


def byte_array(data: bytes) -> NDArray[np.uint8]:
    """Bytes as a writable array, so that kernels are compiled for one array type, for reading and writing alike."""
    return np.frombuffer(bytearray(data), np.uint8)


def write_varint(value: int) -> bytes:
    """Encode in LEB128: seven bits per byte, least significant first, the top bit set in all bytes but the last."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Decode the number at ``at`` (below 2**63); returns it and the next position. Raises FileFormatError if it is cut off."""
    value = 0
    for shift, byte in enumerate(data[at : at + 9]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, at + shift + 1
    raise FileFormatError("A number in a coded plane is cut off or too long; the file is damaged. Get the file again.")
