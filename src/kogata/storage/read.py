"""Read a ``.kogata`` file. Nothing in it is executed, and every size is checked before memory is allocated."""

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
from kogata.coding import CODERS, Plane, PlaneKind, decode
from kogata.coding.packed import packed_bytes
from kogata.coding.plane import INTEGER_DTYPES, MAX_ALPHABET
from kogata.errors import FileFormatError, UsageError
from kogata.forms import FORMS, Form
from kogata.forms.base import float_tensor
from kogata.network.quantizers import QUANTIZERS, Quantizer
from kogata.storage import schema1
from kogata.storage.layout import (
    INLINE,
    MAX_PLANE,
    SCHEMA,
    Artifact,
    EngineGraph,
    PackedFile,
    Stored,
    file_header,
    plane_spec,
)  # fmt: skip
from kogata.storage.manifest import Entry, joined, read_manifest

_CODERS = {coder.tag: coder.name for coder in CODERS}
_QUANTIZERS = {quantizer.TAG: quantizer for quantizer in QUANTIZERS}


def read_file(path: Path, *, forms: Sequence[type[Form]] = ()) -> Artifact:
    """Read and check a file. ``forms`` are form classes of other packages that it may hold.

    Raises FileFormatError when the file is missing, damaged, too new, too large, or holds an unknown form. Raises UsageError
    when one of ``forms`` has no tag or shares its tag with another form.
    """
    known = _known(forms)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read: {error.strerror}.") from None
    try:
        return _Reader(Path(path), data, known).artifact()
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, zlib.error, struct.error, RecursionError) as error:
        raise FileFormatError(f"{path}: is damaged or not a .kogata file: {type(error).__name__}: {error}.") from None


def _known(forms: Sequence[type[Form]]) -> dict[str, type[Form]]:
    """All known form classes by tag."""
    known = {form.TAG: form for form in FORMS}
    for form in forms:
        if not form.TAG or known.setdefault(form.TAG, form) is not form:
            raise UsageError(f"forms: {form.__name__} has the TAG {form.TAG!r}; expected one that no other form has.")
    return known


class _Reader:
    """Parses one file in memory."""

    def __init__(self, path: Path, data: bytes, known: Mapping[str, type[Form]]) -> None:
        self.path, self.known = path, known
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
        manifest = bytes(self.payload[4 : 4 + size])
        self.offset = self.manifest_bytes = 4 + size
        rest = len(self.payload) - self.offset
        self.entries = read_manifest(manifest) if schema > 1 else schema1.entries_of(manifest, rest)
        self.forms = dict[tuple[str, ...], Form]()
        self.buffers, self.quantizers = dict[str, Tensor](), dict[str, Quantizer]()
        self.kept, self.bindings = dict[str, tuple[int, ...]](), dict[str, tuple[str, str, bool]]()
        self.tensors, self.seen = list[str](), set[str]()
        self.graph_bytes: int | None = None
        self.providers = dict[str, str]()

    def artifact(self) -> Artifact:
        """Decode the whole file."""
        for entry in self.entries:
            self._read(entry)
        graph = None
        if self.graph_bytes is not None:
            graph = EngineGraph(data=self._take(self.graph_bytes, "an engine graph"), bindings=self.bindings)
        if self.offset != len(self.payload):
            raise ValueError(f"{len(self.payload) - self.offset} bytes follow its last plane")
        packed = PackedFile(
            data=self.data, planes=tuple(self.stored), header_bytes=self.header_bytes, manifest_bytes=self.manifest_bytes,
            graph_bytes=self.graph_bytes or 0,
        )  # fmt: skip
        return Artifact(
            forms=self.forms, buffers=self.buffers, quantizers=self.quantizers, kept=self.kept, graph=graph, packed=packed,
            source=self.path,
        )  # fmt: skip

    def _read(self, entry: Entry) -> None:
        """Process one entry of the manifest and decode the planes that it declares."""
        match entry:
            case ["weight", [first, *others], node]:
                names = tuple(self._name(name) for name in (first, *others))
                self.tensors.append(names[0])
                self.forms[names] = self._form(node, names[0], "")
            case ["buffer", parts, dtype, plane]:
                self.tensors.append(name := self._name(parts))
                array = self._plane(plane, name, "buffer")
                floats = plane_spec(plane[0], (), 1).kind is PlaneKind.FLOATS
                self.buffers[name] = float_tensor(array, dtype) if floats else torch.from_numpy(array.astype(_integer(dtype)))
            case ["integers", parts, dtype, shape, values]:
                self.tensors.append(name := self._name(parts))
                if len(values) > INLINE:
                    raise ValueError(f"its buffer {name} holds {len(values)} numbers in the manifest; the limit is {INLINE}")
                self.buffers[name] = torch.from_numpy(np.array(values, np.int64).astype(_integer(dtype)).reshape(shape))
            case ["quantizer", parts, tag, header]:
                self.quantizers[joined(parts)] = _quantizer(tag, header)
            case ["kept", parts, places]:
                self.kept[joined(parts)] = tuple(places)
            case ["graph", length] if self.graph_bytes is None:
                self.graph_bytes = length
            case ["bound", number, parts, path, transposed] if self.graph_bytes is not None and number >= 0:
                tensor = self.tensors[number]
                self.bindings[tensor if parts is None else joined(parts)] = (tensor, str(path), bool(transposed))
            case ["provider", tag, where]:
                self.providers[str(tag)] = str(where)
            case _:
                raise ValueError(f"its manifest holds {str(entry)[:80]}")

    def _name(self, parts: Sequence[object]) -> str:
        name = joined(parts)
        if name in self.seen:
            raise ValueError(f"it holds {name} twice")
        self.seen.add(name)
        return name

    def _form(self, node: Sequence[Any], site: str, path: str) -> Form:
        tag, header, planes, parts = node
        kind = self.known.get(tag)
        if kind is None:
            raise FileFormatError(self._unknown(tag, site))
        arrays = {key: self._plane(plane, site, f"{path}{key}") for key, plane in planes.items()}
        forms = {key: self._form(part, site, f"{path}{key}.") for key, part in parts.items()}
        return kind.restore(header, arrays, forms)

    def _unknown(self, tag: str, site: str) -> str:
        """The error message for a form that is neither Kogata's nor among ``forms``; it says what to do."""
        said = f"{site} has a form with the tag {str(tag)[:80]!r}, which kogata {__version__} does not know"
        if tag not in self.providers:
            return f"{said}. Upgrade kogata, or get the file again."
        module, _, name = self.providers[tag][:200].rpartition(":")
        return (
            f"{said}. The file says that it is {name!r} of the module {module!r}. If you trust that package, import the class "
            f"and pass it: load(..., forms=({name},)); read_file, from_pretrained, open and run take forms, too."
        )

    def _take(self, length: int, what: str) -> bytes:
        if not 0 <= length <= len(self.payload) - self.offset:
            raise ValueError(f"it declares {what} of {length} bytes, but ends before")
        self.offset += length
        return bytes(self.payload[self.offset - length : self.offset])

    def _plane(self, entry: Sequence[Any], site: str, name: str) -> np.ndarray:
        typed, shape, length, *alphabet = entry
        spec = plane_spec(typed, tuple(int(n) for n in shape), *(alphabet or [0]))
        if spec.kind is PlaneKind.SYMBOLS and not 1 <= spec.alphabet <= MAX_ALPHABET:
            raise ValueError(f"it declares a plane of {spec.alphabet} symbols; the limit is {MAX_ALPHABET}")
        if min(spec.shape, default=0) < 0 or spec.nbytes > MAX_PLANE:
            raise ValueError(f"it declares a plane of shape {spec.shape}; the limit is {MAX_PLANE} bytes")
        data = self._take(length, "a plane")
        array = decode(data, spec)
        self.stored.append(Stored(
            site=site, plane=name, elements=spec.size, coder=_CODERS[data[0]], bytes=length,
            packed_bytes=packed_bytes(spec), entropy_bits=Plane(array, spec).entropy_bits(),
        ))  # fmt: skip
        return array


def _integer(dtype: object) -> np.dtype[Any]:
    if dtype not in INTEGER_DTYPES:
        raise ValueError(f"dtype {str(dtype)[:80]!r} is none of {', '.join(INTEGER_DTYPES)}")
    return np.dtype(str(dtype))


def _quantizer(tag: str, header: Mapping[str, Any]) -> Quantizer:
    if tag not in _QUANTIZERS:
        raise FileFormatError(
            f"has an activation quantizer {str(tag)[:80]!r}, which kogata {__version__} does not know. Upgrade it."
        )
    try:
        return _QUANTIZERS[tag].restore(header)
    except UsageError as error:
        raise ValueError(str(error)) from None
