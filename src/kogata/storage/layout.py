"""The layout of a ``.kogata`` file: what it holds and how its bytes are spent. ``docs/format.md`` is the specification."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kogata.forms import Form
from kogata.network.quantizers import Quantizer

SCHEMA = 1
MAX_MANIFEST = 64 << 20  # bytes once inflated: far above a model of ten thousand weights
MAX_PLANE = 1 << 33  # bytes of one decoded plane; a damaged header must not reserve more


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
    """An engine graph without its weights, and where each initializer's values are: site name, form path, transposed."""

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
