"""The contents and layout of a ``.kogata`` file. ``docs/format.md`` is the specification."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kogata.coding.plane import FLOAT_DTYPES, INTEGER_DTYPES, PlaneKind, PlaneSpec
from kogata.forms import Form
from kogata.network.quantizers import Quantizer

SCHEMA = 2  # increases whenever the previous version could not read newly written files
MAX_PLANE = 1 << 33  # largest decoded size of a plane in bytes; guards against damaged headers
INLINE = 8  # integer buffers with at most this many elements are stored in the manifest


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One plane as it is stored in the file."""

    site: str  # name of the weight or buffer
    plane: str  # path of the form, and name of the plane
    elements: int
    coder: str
    bytes: int
    packed_bytes: int  # size with fixed-width elements, before entropy coding
    entropy_bits: float


@dataclass(frozen=True, kw_only=True)
class EngineGraph:
    """An engine graph without its weights.

    ``bindings`` says, by the name of an initializer, which tensor of the file holds its values: the name of a weight or buffer,
    the path of the part within the weight's form (empty for the whole weight), and whether the matrix is transposed.
    """

    data: bytes
    bindings: Mapping[str, tuple[str, str, bool]]


@dataclass(frozen=True, kw_only=True)
class PackedFile:
    """A whole file in memory, with the sizes of its parts in bytes."""

    data: bytes
    planes: tuple[Stored, ...]
    header_bytes: int
    manifest_bytes: int
    graph_bytes: int


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """The decoded contents of a file.

    ``forms`` has a form for each weight, by all names of the weight; ``quantizers`` has activation quantizers by the path of
    their module. ``kept`` has the indices of the remaining entries of each shortened list of layers, by its path, outer lists
    first. ``extra`` has the extra state of modules by their path. ``full`` has the integer attributes that each layer with
    fewer channels had before, by its path; it is None in files of schema 1, which do not say. ``graph`` is the engine graph, if
    there is one.
    """

    forms: Mapping[tuple[str, ...], Form]
    buffers: Mapping[str, Tensor]
    quantizers: Mapping[str, Quantizer]
    kept: Mapping[str, tuple[int, ...]]
    full: Mapping[str, Mapping[str, int]] | None
    extra: Mapping[str, Any]
    graph: EngineGraph | None
    packed: PackedFile
    source: Path


def file_header(schema: int, tool: str, payload: bytes) -> bytes:
    """The safetensors header. A reader rebuilds it and compares, so that every changed bit is detected."""
    digest = hashlib.sha256(f"kogata {schema} {tool} ".encode() + payload).hexdigest()
    metadata = {"format": "kogata", "schema": str(schema), "sha256": digest, "tool": tool}
    tensor = {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}
    text = json.dumps({"__metadata__": metadata, "payload": tensor}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # safetensors aligns the data to 8 bytes
    return struct.pack("<Q", len(text)) + text


def plane_entry(spec: PlaneSpec, length: int) -> list[object]:
    """The manifest entry of a plane: its type, shape, coded length, and for symbols the size of the alphabet."""
    typed = spec.dtype if spec.kind in (PlaneKind.FLOATS, PlaneKind.INTEGERS) else str(spec.kind)
    entry: list[object] = [typed, list(spec.shape), length]
    return [*entry, spec.alphabet] if spec.kind is PlaneKind.SYMBOLS else entry


def plane_spec(typed: str, shape: tuple[int, ...], alphabet: int) -> PlaneSpec:
    """The inverse of :func:`plane_entry`. Symbols get the narrowest integer dtype of PyTorch.

    Raises ValueError for an unknown type.
    """
    if typed == PlaneKind.SYMBOLS:
        dtype = "uint8" if alphabet <= 1 << 8 else "int16" if alphabet <= 1 << 15 else "int32"
        return PlaneSpec(PlaneKind.SYMBOLS, shape, dtype, alphabet)
    if typed == PlaneKind.MASK:
        return PlaneSpec(PlaneKind.MASK, shape, "bool")
    for kind, dtypes in ((PlaneKind.FLOATS, FLOAT_DTYPES), (PlaneKind.INTEGERS, INTEGER_DTYPES)):
        if typed in dtypes:
            return PlaneSpec(kind, shape, typed)
    raise ValueError(f"it declares a plane of type {str(typed)[:80]!r}")
