"""Zstandard (RFC 8878) over bytes grouped by significance: the lowest bytes of all elements first, then the next bytes.

A general LZ coder finds repeated sequences, which no symbol model here looks for.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kogata.coding.budget import Budget, Cost
from kogata.coding.coder import Coder, damaged, from_symbols
from kogata.coding.plane import Plane, PlaneKind, PlaneSpec

# Level 19 takes seconds on 10 MB. Past 1 MiB the fast level is used, which loses little, because repeats in large planes
# are close to each other.
STRONG_LEVEL = 19
FAST_LEVEL = 3
STRONG_BYTES = 1 << 20
MAX_WINDOW = 1 << 23  # largest window of level 19; limits what a damaged frame can make the decoder allocate


class Zstd(Coder):
    """For any plane. A mask is coded as its bitmap, symbols as one byte each, or two for alphabets over 256."""

    name: ClassVar[str] = "zstd"
    tag: ClassVar[int] = 2

    def accepts(self, spec: PlaneSpec) -> bool:
        return True

    def encode(self, plane: Plane) -> bytes:
        import zstandard

        raw = _layout(plane)
        parameters = zstandard.ZstdCompressionParameters.from_level(  # pyright: ignore[reportUnknownMemberType]
            STRONG_LEVEL if len(raw) <= STRONG_BYTES else FAST_LEVEL,
            source_size=len(raw),
            format=zstandard.FORMAT_ZSTD1_MAGICLESS,
            write_content_size=False,
        )
        return zstandard.ZstdCompressor(compression_params=parameters).compress(raw)

    def decode(self, data: bytes, spec: PlaneSpec, budget: Budget) -> NDArray[Any]:
        import zstandard

        expected = _layout_bytes(spec)
        budget.charge("a Zstandard frame", Cost(scratch=2 * expected + spec.size + MAX_WINDOW, work=4 * (spec.size + expected)))
        try:
            frame = zstandard.get_frame_parameters(data, format=zstandard.FORMAT_ZSTD1_MAGICLESS)
            # A size stated in the frame would be allocated before any check; frames of this coder state none.
            if frame.content_size != zstandard.CONTENTSIZE_UNKNOWN:
                raise damaged(self, spec, "its frame states a size")
            decompressor = zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS, max_window_size=MAX_WINDOW)
            # One byte more than expected, because a limit of zero would mean no limit.
            raw = decompressor.decompress(data, max_output_size=expected + 1, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise damaged(self, spec, str(error)) from error
        if len(raw) != expected:
            raise damaged(self, spec, f"it unpacks to {len(raw)} bytes instead of {expected}")
        return self._restore(raw, spec)

    def _restore(self, raw: bytes, spec: PlaneSpec) -> NDArray[Any]:
        bytes_ = np.frombuffer(raw, np.uint8)
        if spec.kind is PlaneKind.MASK:
            return np.unpackbits(bytes_, count=spec.size, bitorder="little").astype(np.bool_).reshape(spec.shape)
        little = _element_dtype(spec)
        values = np.ascontiguousarray(bytes_.reshape(little.itemsize, spec.size).T).view(little).ravel()
        if spec.kind is PlaneKind.SYMBOLS and values.size and int(values.max()) >= spec.alphabet:
            raise damaged(self, spec, f"symbol {values.max()} is outside the alphabet of {spec.alphabet}")
        if spec.dtype == "bool" and bytes_.size and int(bytes_.max()) > 1:
            raise damaged(self, spec, "a boolean is neither 0 nor 1")
        return from_symbols(values, spec)


def _layout(plane: Plane) -> bytes:
    if plane.spec.kind is PlaneKind.MASK:
        return np.packbits(plane.array, axis=None, bitorder="little").tobytes()
    little = _element_dtype(plane.spec)
    values = plane.array.ravel().astype(little)
    return values.view(np.uint8).reshape(values.size, little.itemsize).T.tobytes()


def _layout_bytes(spec: PlaneSpec) -> int:
    return (spec.size + 7) // 8 if spec.kind is PlaneKind.MASK else spec.size * _element_dtype(spec).itemsize


def _element_dtype(spec: PlaneSpec) -> np.dtype[Any]:
    if spec.kind is PlaneKind.SYMBOLS:
        return np.dtype("u1") if spec.alphabet <= 256 else np.dtype("<u2")
    return spec.array_dtype.newbyteorder("<")
