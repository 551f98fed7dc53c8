"""Read a ``.kogata`` file: nothing in it is executed, and every size is checked before memory is reserved."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kogata._version import __version__
from kogata.coding import CODERS, Plane, PlaneKind, PlaneSpec, decode
from kogata.coding.packed import packed_bytes
from kogata.coding.plane import MAX_ALPHABET
from kogata.errors import FileFormatError, UsageError
from kogata.forms import FORMS, Form
from kogata.forms.base import float_tensor
from kogata.network.quantizers import QUANTIZERS, Quantizer
from kogata.storage.layout import MAX_MANIFEST, MAX_PLANE, SCHEMA, Artifact, EngineGraph, PackedFile, Stored, file_header

_BY_NAME = {form.__name__.lower(): form for form in FORMS}


_CODERS = {coder.tag: coder.name for coder in CODERS}


def read_file(path: Path) -> Artifact:
    """Read and check a file. Raises FileFormatError when it is missing, damaged, too new or too large."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read: {error.strerror}.") from None
    try:
        return _Reader(Path(path), data).artifact()
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, zlib.error, struct.error, RecursionError) as error:
        raise FileFormatError(f"{path}: is damaged or no .kogata file: {type(error).__name__}: {error}.") from None


class _Reader:
    """Parses one file held in memory."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        if len(data) < 8 or not 2 <= (length := struct.unpack_from("<Q", data)[0]) <= min(len(data) - 8, 4096):
            raise ValueError("it has no safetensors header of a sensible size")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        if metadata["format"] != "kogata":
            raise ValueError(f"its format is {metadata['format']!r}")
        schema = int(metadata["schema"])
        if schema > SCHEMA:
            raise FileFormatError(
                f"has schema {schema}, written by kogata {metadata['tool']}; this is kogata {__version__}, which reads "
                f"up to schema {SCHEMA}. Upgrade kogata."
            )
        self.data, self.header_bytes, self.stored = data, 8 + length, list[Stored]()
        self.payload = memoryview(data)[8 + length :]
        if file_header(schema, metadata["tool"], bytes(self.payload)) != data[: 8 + length]:
            raise ValueError("its checksum does not match: it was truncated or changed")
        (size,) = struct.unpack_from("<I", self.payload)
        inflater = zlib.decompressobj()
        text = inflater.decompress(self.payload[4 : 4 + size], MAX_MANIFEST)
        if inflater.unconsumed_tail or not inflater.eof:
            raise ValueError(f"its manifest is longer than {MAX_MANIFEST} bytes")
        self.manifest = json.loads(text)
        self.offset = self.manifest_bytes = 4 + size

    def artifact(self) -> Artifact:
        """Everything in the file, in the order it was written."""
        forms = {tuple(map(str, names)): self._form(tree, str(names[0]), "") for names, tree in self.manifest["sites"]}
        buffers = {name: self._buffer(name, dtype, plane) for name, (dtype, plane) in self.manifest["buffers"].items()}
        quantizers = {str(path): _quantizer(header) for path, header in self.manifest.get("activations", {}).items()}
        kept = {str(path): tuple(places) for path, places in self.manifest.get("kept", {}).items()}
        graph = None
        if "graph" in self.manifest:
            bindings = {name: (str(s), str(p), bool(t)) for name, (s, p, t) in self.manifest["graph"].items()}
            graph = EngineGraph(data=bytes(self.payload[self.offset :]), bindings=bindings)
        elif self.offset != len(self.payload):
            raise ValueError(f"{len(self.payload) - self.offset} bytes follow its last plane")
        packed = PackedFile(
            data=self.data, planes=tuple(self.stored), header_bytes=self.header_bytes, manifest_bytes=self.manifest_bytes,
            graph_bytes=len(graph.data) if graph else 0,
        )  # fmt: skip
        return Artifact(
            forms=forms, buffers=buffers, quantizers=quantizers, kept=kept, graph=graph, packed=packed, source=self.path,
        )  # fmt: skip

    def _form(self, tree: Sequence[Any], site: str, path: str) -> Form:
        name, header, planes, parts = tree
        arrays = {key: self._plane(plane, site, f"{path}{key}") for key, plane in planes.items()}
        forms = {key: self._form(part, site, f"{path}{key}.") for key, part in parts.items()}
        return _BY_NAME[name].restore(header, arrays, forms)

    def _buffer(self, name: str, dtype: str, plane: Sequence[Any]) -> Tensor:
        array = self._plane(plane, name, "buffer")
        if plane[0] == PlaneKind.FLOATS:
            return float_tensor(array, dtype)
        return torch.from_numpy(array.astype(np.dtype(dtype)))

    def _plane(self, entry: Sequence[Any], site: str, name: str) -> np.ndarray:
        kind, shape, dtype, alphabet, length = entry
        spec = PlaneSpec(PlaneKind(kind), tuple(int(n) for n in shape), dtype, int(alphabet))
        if spec.kind is PlaneKind.SYMBOLS and not 1 <= spec.alphabet <= MAX_ALPHABET:
            raise ValueError(f"it declares a plane of {spec.alphabet} symbols; the limit is {MAX_ALPHABET}")
        if min(spec.shape, default=0) < 0 or spec.nbytes > MAX_PLANE:
            raise ValueError(f"it declares a plane of shape {spec.shape}; the limit is {MAX_PLANE} bytes")
        if not 0 <= length <= len(self.payload) - self.offset:
            raise ValueError(f"it declares a plane of {length} bytes, but ends before")
        data = bytes(self.payload[self.offset : self.offset + length])
        self.offset += length
        array = decode(data, spec)
        self.stored.append(Stored(
            site=site, plane=name, elements=spec.size, coder=_CODERS[data[0]], bytes=length,
            packed_bytes=packed_bytes(spec), entropy_bits=Plane(array, spec).entropy_bits(),
        ))  # fmt: skip
        return array


def _quantizer(header: Mapping[str, Any]) -> Quantizer:
    try:
        return QUANTIZERS[header["kind"]].restore(header)
    except UsageError as error:
        raise ValueError(str(error)) from None
