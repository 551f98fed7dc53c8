"""Read a ``.kogata`` file. Nothing in it is executed, and whatever takes memory or time is first charged to one budget."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from torch import Tensor, nn

from kogata._version import __version__
from kogata.coding import CODERS, Budget, Cost, Plane, PlaneKind, PlaneSpec, decode
from kogata.coding.packed import packed_bytes
from kogata.coding.plane import INTEGER_DTYPES, MAX_ALPHABET, PIECE, checked_shape
from kogata.errors import FileFormatError, UsageError
from kogata.forms import FORMS, Form
from kogata.forms.base import float_tensor, nodes
from kogata.network.quantizers import QUANTIZERS, Quantizer
from kogata.storage import schema1
from kogata.storage.extra import decoded
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
from kogata.storage.manifest import MAX_NUMBER, Entry, joined, read_manifest

_CODERS = {coder.tag: coder.name for coder in CODERS}
_QUANTIZERS = {quantizer.TAG: quantizer for quantizer in QUANTIZERS}


# Without another limit, a file may take 64 MiB of memory and 1 KiB for each of its bytes, or 32 times what its model takes.
BASE_LIMIT, LIMIT_PER_BYTE, LIMIT_PER_MODEL = 64 << 20, 1 << 10, 32
MAX_DEPTH = 16  # of forms within forms
# What Python's objects for a form or a plane take besides their arrays.
OBJECT = Cost(keep=4 << 10, work=60_000)


def read_file(
    path: Path, *, forms: Sequence[type[Form]] = (), into: nn.Module | None = None, max_bytes: int | None = None
) -> Artifact:
    """Read and check a file.

    :param forms: form classes of other packages that it may hold.
    :param into: the model that it is meant for, if that is known. It raises the default of ``max_bytes``.
    :param max_bytes: the most memory, in bytes, that its contents may take while they are decoded and as dense weights. The
        work that they may take is limited in proportion. By default 64 MiB and 1 KiB for each byte of the file; at least 32
        times the memory of ``into``.

    Raises FileFormatError when the file is missing, damaged, too new, over the limit, or holds an unknown form. Raises
    UsageError when one of ``forms`` has no tag or shares its tag with another form.
    """
    known = _known(forms)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read: {error.strerror}.") from None
    if max_bytes is None:
        held = sum(tensor.nbytes for tensor in (*into.parameters(), *into.buffers())) if into is not None else 0
        max_bytes = max(BASE_LIMIT + LIMIT_PER_BYTE * len(data), LIMIT_PER_MODEL * held)
    budget = Budget(max_bytes)
    try:
        return _Reader(Path(path), data, known, budget).artifact()
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from None
    except MemoryError:  # the machine has less than the limit allows
        raise
    except Exception as error:  # contents can be wrong in more ways than there are checks; to a caller all mean the same
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise FileFormatError(f"{path}: is damaged or not a .kogata file: {reason}.") from error


def _known(forms: Sequence[object]) -> dict[str, type[Form]]:
    """All known form classes by tag."""
    known = {form.TAG: form for form in FORMS}
    for form in forms:
        if not isinstance(form, type) or not issubclass(form, Form):
            raise UsageError(f"forms: {form!r} is no form; expected classes that extend kogata.forms.Form.")
        if not form.TAG or known.setdefault(form.TAG, form) is not form:
            raise UsageError(f"forms: {form.__name__} has the TAG {form.TAG!r}; expected one that no other form has.")
    return known


class _Reader:
    """Parses one file in memory."""

    def __init__(self, path: Path, data: bytes, known: Mapping[str, type[Form]], budget: Budget) -> None:
        self.path, self.known, self.budget = path, known, budget
        if len(data) < 8 or not 2 <= (length := struct.unpack_from("<Q", data)[0]) <= min(len(data) - 8, 4096):
            raise ValueError("it has no safetensors header of a sensible size")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        if metadata["format"] != "kogata":
            raise ValueError(f"its format is {metadata['format']!r}")
        if not (stated := str(metadata["schema"])).isdecimal() or not (schema := int(stated)):
            raise ValueError(f"its schema is {stated[:80]!r}, which is no number from 1")
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
        self.entries = read_manifest(manifest, budget) if schema > 1 else schema1.entries_of(manifest, rest, budget)
        self.forms = dict[tuple[str, ...], Form]()
        self.buffers, self.quantizers = dict[str, Tensor](), dict[str, Quantizer]()
        self.kept, self.bindings = dict[str, tuple[int, ...]](), dict[str, tuple[str, str, bool]]()
        self.tensors, self.seen = list[str](), set[str]()
        self.graph_bytes: int | None = None
        self.full = dict[str, dict[str, int]]()
        self.extra = dict[str, Any]()
        self.schema = schema
        self.providers = dict[str, str]()
        self.work = dict[str, int]()  # to decode each weight and compute it once, by name

    def artifact(self) -> Artifact:
        """Decode the whole file."""
        for entry in self.entries:
            self._read(entry)
        graph = None
        if self.graph_bytes is not None:
            graph = self._graph(self.graph_bytes)
        if self.offset != len(self.payload):
            raise ValueError(f"{len(self.payload) - self.offset} bytes follow its last plane")
        packed = PackedFile(
            data=self.data, planes=tuple(self.stored), header_bytes=self.header_bytes, manifest_bytes=self.manifest_bytes,
            graph_bytes=self.graph_bytes or 0,
        )  # fmt: skip
        return Artifact(
            forms=self.forms, buffers=self.buffers, quantizers=self.quantizers, kept=self.kept,
            full=self.full if self.schema > 1 else None, extra=self.extra, graph=graph, packed=packed,
            source=self.path,
        )  # fmt: skip

    def _graph(self, length: int) -> EngineGraph:
        """The engine graph. Its parsed text, and the weights that are filled in for it, are charged here."""
        graph = EngineGraph(data=self._take(length, "an engine graph"), bindings=self.bindings)
        text = max(0, zstandard.frame_content_size(graph.data))
        self.budget.charge("its engine graph", Cost(keep=4 * text, work=64 * text))
        trees = {names[0]: dict(nodes(form)) for names, form in self.forms.items()}
        for tensor, path, _ in self.bindings.values():
            if tensor not in self.buffers and path not in trees.get(tensor, {}):
                raise ValueError(f"its engine graph takes part {path!r} of {tensor}, which the file does not hold")
            size = self.buffers[tensor].nbytes if tensor in self.buffers else 8 * trees[tensor][path].shape.numel()
            self.budget.charge(
                f"the initializer of {tensor} in its engine graph", Cost(keep=size, work=self.work.get(tensor, 0))
            )
        return graph

    def _read(self, entry: Entry) -> None:
        """Process one entry of the manifest and decode the planes that it declares."""
        match entry:
            case ["weight", [first, *others], node]:
                names = tuple(self._name(name) for name in (first, *others))
                self.tensors.append(names[0])
                before = self.budget.work
                self.forms[names] = form = self._form(node, names[0], "", MAX_DEPTH)
                if len(types := {str(leaf.values.dtype) for _, leaf in form.leaves()}) > 1:
                    raise ValueError(f"{names[0]} mixes the float types {', '.join(sorted(types))}")
                self.work[names[0]] = self.budget.work - before
            case ["buffer", parts, dtype, plane]:
                self.tensors.append(name := self._name(parts))
                array = self._plane(plane, name, "buffer")
                self.budget.charge(name, Cost(keep=8 * array.size, work=array.size))
                self.buffers[name] = _tensor(array, plane[0], dtype)
            case ["integers", parts, dtype, shape, values]:
                self.tensors.append(name := self._name(parts))
                if len(values) > INLINE:
                    raise ValueError(f"its buffer {name} holds {len(values)} numbers in the manifest; the limit is {INLINE}")
                numbers = np.array(checked_shape(values, -MAX_NUMBER), np.int64).astype(_integer(dtype))
                self.buffers[name] = torch.from_numpy(numbers.reshape(checked_shape(shape)))
            case ["same", parts, first]:
                self.tensors.append(name := self._name(parts))
                self.buffers[name] = self.buffers[joined(first)]
            case ["quantizer", parts, tag, header]:
                self.quantizers[joined(parts)] = _quantizer(tag, header)
            case ["extra", parts, node]:
                owner = joined(parts)
                self.extra[owner] = decoded(node, partial(self._extra_tensor, owner))
            case ["kept", parts, places]:
                self.kept[joined(parts)] = tuple(places)
            case ["full", parts, sizes]:
                checked_shape(list(sizes.values()), 1)
                self.full[joined(parts)] = dict(sizes)
            case ["graph", length] if self.graph_bytes is None:
                self.graph_bytes = length
            case ["bound", number, parts, path, transposed] if self.graph_bytes is not None and number >= 0:
                tensor = self.tensors[number]
                self.bindings[tensor if parts is None else joined(parts)] = (tensor, str(path), bool(transposed))
            case ["provider", tag, where]:
                self.providers[str(tag)] = str(where)
            case _:
                raise ValueError(f"its manifest holds {str(entry)[:80]}")

    def _extra_tensor(self, path: str, dtype: str, plane: Sequence[Any]) -> Tensor:
        array = self._plane(plane, f"{path}.extra_state".lstrip("."), "extra")
        self.budget.charge(f"the extra state of {path}", Cost(keep=8 * array.size, work=array.size))
        return _tensor(array, plane[0], dtype)

    def _name(self, parts: Sequence[object]) -> str:
        name = joined(parts)
        if name in self.seen:
            raise ValueError(f"it holds {name} twice")
        self.seen.add(name)
        return name

    def _form(self, node: Sequence[Any], site: str, path: str, depth: int) -> Form:
        tag, header, planes, parts = node
        if not depth:
            raise ValueError(f"{site} nests more than {MAX_DEPTH} forms")
        self.budget.charge(f"a form of {site}", OBJECT._replace(keep=OBJECT.keep + 8 * len(path)))
        kind = self.known.get(tag)
        if kind is None:
            raise FileFormatError(self._unknown(tag, site))
        arrays = {key: self._plane(plane, site, f"{path}{key}") for key, plane in planes.items()}
        forms = {key: self._form(part, site, f"{path}{key}.", depth - 1) for key, part in parts.items()}
        self.budget.charge(f"{site}, {path or tag}", kind.cost(header, arrays, forms))
        return kind.restore(header, arrays, forms)

    def _unknown(self, tag: str, site: str) -> str:
        """The error message for a form that is neither Kogata's nor among ``forms``; it says what to do."""
        said = f"{site} has a form with the tag {str(tag)[:80]!r}, which kogata {__version__} does not know"
        if tag not in self.providers:
            package, dot, _ = str(tag)[:80].partition(".")
            other = f"It is probably one of the package {package!r}: pass its class in forms. Otherwise u" if dot else "U"
            return f"{said}. {other}pgrade kogata, or get the file again."
        module, _, name = self.providers[tag][:200].rpartition(":")
        return (
            f"{said}. The file says that it is {name!r} of the module {module!r}. If you trust that package, import the class "
            f"and pass it: load(..., forms=({name},)); read_file, from_pretrained, open and run take forms, too, and the "
            f"commands take --form {module}:{name}."
        )

    def _take(self, length: int, what: str) -> bytes:
        if not 0 <= length <= len(self.payload) - self.offset:
            raise ValueError(f"it declares {what} of {length} bytes, but ends before")
        self.offset += length
        return bytes(self.payload[self.offset - length : self.offset])

    def _plane(self, entry: Sequence[Any], site: str, name: str) -> np.ndarray:
        typed, shape, length, *alphabet = entry
        spec = plane_spec(typed, checked_shape(shape), *(alphabet or [0]))
        if spec.kind is PlaneKind.SYMBOLS and not 1 <= spec.alphabet <= MAX_ALPHABET:
            raise ValueError(f"it declares a plane of {spec.alphabet} symbols; the limit is {MAX_ALPHABET}")
        if spec.nbytes > MAX_PLANE:
            raise ValueError(f"it declares a plane of shape {spec.shape}; the limit is {MAX_PLANE} bytes")
        data = self._take(length, "a plane")
        self.budget.charge(f"a plane of {site}", OBJECT._replace(keep=OBJECT.keep + 8 * len(name)))
        self.budget.charge(f"a histogram of {site}", _histogram(spec))
        array = decode(data, spec, self.budget)
        self.stored.append(Stored(
            site=site, plane=name, elements=spec.size, coder=_CODERS[data[0]], bytes=length,
            packed_bytes=packed_bytes(spec), entropy_bits=Plane(array, spec).entropy_bits(),
        ))  # fmt: skip
        return array


def _histogram(spec: PlaneSpec) -> Cost:
    """The cost of the entropy of a plane: a count for each symbol, or for each distinct integer, which must be sorted."""
    match spec.kind:
        case PlaneKind.SYMBOLS:
            return Cost(scratch=32 * spec.alphabet + 8 * min(spec.size, PIECE), work=16 * spec.alphabet + 4 * spec.size)
        case PlaneKind.INTEGERS:
            return Cost(scratch=24 * spec.size, work=100 * spec.size)
        case _:
            return Cost(work=spec.size)


def _tensor(array: np.ndarray, typed: str, dtype: object) -> Tensor:
    """A plane of this type as a tensor of ``dtype``."""
    floats = plane_spec(typed, (), 1).kind is PlaneKind.FLOATS
    return float_tensor(array, dtype) if floats else torch.from_numpy(array.astype(_integer(dtype)))


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
