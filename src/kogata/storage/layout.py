"""The layout of a ``.kogata`` file: what it holds and how its bytes are spent. ``docs/format.md`` is the specification."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kogata.coding.plane import FLOAT_DTYPES, INTEGER_DTYPES, PlaneKind, PlaneSpec
from kogata.forms import Form
from kogata.network.quantizers import Quantizer

SCHEMA = 2  # moves whenever a file written today could not be read by the version before
MAX_PLANE = 1 << 33  # bytes of one decoded plane; a damaged header must not reserve more
INLINE = 8  # integer buffers of at most so many elements lie in the manifest


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One plane as it lies in the file."""

    site: str  # the weight's or buffer's name
    plane: str  # path of the form and name of the plane
    elements: int
    coder: str
    bytes: int
    packed_bytes: int  # at the fixed width of its elements, before any coding
    entropy_bits: float


@dataclass(frozen=True, kw_only=True)
class EngineGraph:
    """An engine graph without its weights, and where the values of an initializer are, by its name.

    A place is the name of a weight or buffer, the path of the part within the weight's form (empty for the whole), and whether
    the matrix there is transposed.
    """

    data: bytes
    bindings: Mapping[str, tuple[str, str, bool]]


@dataclass(frozen=True, kw_only=True)
class PackedFile:
    """A whole file in memory, and how its bytes are spent."""

    data: bytes
    planes: tuple[Stored, ...]
    header_bytes: int
    manifest_bytes: int
    graph_bytes: int


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What a file holds: a form for each weight by all its names, buffers, activation quantizers by the path of their module.

    ``kept`` are the places that remain in each list of layers that became shorter, by its path, outer lists first; ``graph`` is
    the engine graph, if there is one.
    """

    forms: Mapping[tuple[str, ...], Form]
    buffers: Mapping[str, Tensor]
    quantizers: Mapping[str, Quantizer]
    kept: Mapping[str, tuple[int, ...]]
    graph: EngineGraph | None
    packed: PackedFile  # the file itself
    source: Path


def file_header(schema: int, tool: str, payload: bytes) -> bytes:
    """The safetensors header. A reader builds it again and compares, so that no bit of it can flip unseen."""
    digest = hashlib.sha256(f"kogata {schema} {tool} ".encode() + payload).hexdigest()
    metadata = {"format": "kogata", "schema": str(schema), "sha256": digest, "tool": tool}
    tensor = {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}
    text = json.dumps({"__metadata__": metadata, "payload": tensor}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # safetensors aligns the data
    return struct.pack("<Q", len(text)) + text


def plane_entry(spec: PlaneSpec, length: int) -> list[object]:
    """A plane in the manifest: its type, shape, coded length, and for symbols the size of their alphabet."""
    typed = spec.dtype if spec.kind in (PlaneKind.FLOATS, PlaneKind.INTEGERS) else str(spec.kind)
    entry: list[object] = [typed, list(spec.shape), length]
    return [*entry, spec.alphabet] if spec.kind is PlaneKind.SYMBOLS else entry


def plane_spec(typed: str, shape: tuple[int, ...], alphabet: int) -> PlaneSpec:
    """Reverse :func:`plane_entry`. Symbols come back in the narrowest type of torch; raises ValueError for an unknown type."""
    if typed == PlaneKind.SYMBOLS:
        dtype = "uint8" if alphabet <= 1 << 8 else "int16" if alphabet <= 1 << 15 else "int32"
        return PlaneSpec(PlaneKind.SYMBOLS, shape, dtype, alphabet)
    if typed == PlaneKind.MASK:
        return PlaneSpec(PlaneKind.MASK, shape, "bool")
    for kind, dtypes in ((PlaneKind.FLOATS, FLOAT_DTYPES), (PlaneKind.INTEGERS, INTEGER_DTYPES)):
        if typed in dtypes:
            return PlaneSpec(kind, shape, typed)
    raise ValueError(f"it declares a plane of type {str(typed)[:80]!r}")
