"""The ``.kogata`` file: the only module that knows its layout. Same model, same bytes.

It is a valid safetensors file with one byte tensor, ``payload``, and the metadata ``format``, ``schema``, ``tool`` and
``sha256`` (of the three others and the payload). The payload is

    manifest length (4 bytes, little-endian) | manifest (JSON, deflated) | coded planes, in the manifest's order | graph

The manifest lists each weight as its names and its tree of forms, every plane with its spec and coded length; then buffers;
then the activation quantizers by the path of their module, and which entries remain of the lists of layers that became
shorter, where there are any; then the engine graph (ONNX without the weights, zstd) and which tensor of which form each of
its initializers is.
Nothing in a file is executed, and every size is checked before memory is reserved.
"""

from __future__ import annotations

import hashlib
import json
import logging
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from kogata import __version__, activations, depth, shrink, surgery
from kogata.activations import QUANTIZERS, Quantizer
from kogata.atomic import writing
from kogata.coding import CODERS, Coder, Plane, PlaneKind, PlaneSpec, decode, encode
from kogata.coding.packed import packed_bytes
from kogata.coding.plane import MAX_ALPHABET
from kogata.errors import FileFormatError, UsageError
from kogata.forms import FORMS, Dense, Form
from kogata.forms.base import float_plane, float_tensor

log = logging.getLogger("kogata")

SCHEMA = 1
MAX_MANIFEST = 64 << 20  # bytes once inflated: far above a model of ten thousand weights
MAX_PLANE = 1 << 33  # bytes of one decoded plane; a damaged header must not reserve more

_SAFETENSORS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_BY_NAME = {form.__name__.lower(): form for form in FORMS}
_CODERS = {coder.tag: coder.name for coder in CODERS}


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
class Graph:
    """An engine graph without its weights, and where each initializer's values are: site name, form path, transposed."""

    data: bytes
    bindings: Mapping[str, tuple[str, str, bool]]


@dataclass(frozen=True, kw_only=True)
class Packed:
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
    graph: Graph | None
    packed: Packed  # the file itself
    source: Path


def pack(model: nn.Module, graph: Graph | None = None, coders: tuple[Coder, ...] = CODERS) -> Packed:
    """The model as the bytes of a file; each plane by the one of ``coders`` that needs the fewest."""
    blobs: list[bytes] = []
    lines: list[Stored] = []

    def code(site: str, name: str, plane: Plane) -> list[Any]:
        coded = encode(plane, coders)
        blobs.append(coded.data)
        lines.append(Stored(
            site=site, plane=name, elements=plane.spec.size, coder=coded.coder, bytes=len(coded.data),
            packed_bytes=packed_bytes(plane.spec), entropy_bits=coded.entropy_bits,
        ))  # fmt: skip
        spec = plane.spec
        return [str(spec.kind), list(spec.shape), spec.dtype, spec.alphabet, len(coded.data)]

    def tree(site: str, path: str, form: Form) -> list[Any]:
        planes = {name: code(site, f"{path}{name}", plane) for name, plane in form.planes().items()}
        parts = {name: tree(site, f"{path}{name}.", part) for name, part in form.parts().items()}
        return [type(form).__name__.lower(), form.header(), planes, parts]

    manifest: dict[str, Any] = {"sites": [], "buffers": {}}
    for site in surgery.sites(model):
        manifest["sites"].append([[site.name, *site.aliases], tree(site.name, "", surgery.form_at(model, site))])
    for name, tensor in _buffers(model).items():
        plane = float_plane(tensor) if tensor.is_floating_point() else Plane.integers(tensor.cpu().numpy())
        dtype = str(tensor.dtype).removeprefix("torch.")
        manifest["buffers"][name] = [dtype, code(name, "buffer", plane)]
    if quantizers := {path: quantizer.header() for path, quantizer in activations.quantizers(model)}:
        manifest["activations"] = quantizers
    if kept := depth.shortened(model):
        manifest["kept"] = kept
    if graph is not None:
        manifest["graph"] = {name: list(binding) for name, binding in graph.bindings.items()}
    text = json.dumps(manifest, separators=(",", ":")).encode()
    deflated = zlib.compress(text, 9)
    payload = b"".join([struct.pack("<I", len(deflated)), deflated, *blobs, graph.data if graph else b""])
    header = _header(SCHEMA, __version__, payload)
    return Packed(
        data=header + payload, planes=tuple(lines), header_bytes=len(header), manifest_bytes=4 + len(deflated),
        graph_bytes=len(graph.data) if graph else 0,
    )  # fmt: skip


def write(path: Path, packed: Packed) -> None:
    """Write the file whole or not at all."""
    with writing(path) as file:
        file.write(packed.data)


def save(model: nn.Module, path: Path | str) -> None:
    """Write a model as a file, forms and all, without an engine graph: what :func:`load` reads.

    Raises UsageError while the model is still in training under a method, DataError when the file cannot be written.
    """
    write(Path(path), pack(model))


def read(path: Path) -> Artifact:
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


def load(path: Path | str, into: nn.Module) -> nn.Module:
    """Give ``into``, a model of the right class, the weights of a file, and return it.

    Its parameters become the file's forms, trainable and differentiable as before. A layer that lost channels becomes as small
    as the file says: linear and convolutional layers, batch normalization and embeddings, where all tensors of the layer
    agree; a list of layers becomes as short. Raises FileFormatError when the file is damaged or of another model; ``into`` is
    then as it was.
    """
    artifact = read(Path(path))
    trial = surgery.clone(into)  # what does not fit is found on it, before ``into`` is changed
    _shorten(path, trial, artifact)
    _quantize(path, trial, artifact)
    found, buffers = {site.name: site for site in surgery.sites(trial)}, _buffers(trial)
    held = [names[0] for names in artifact.forms]
    wrong = [*(name for name in held if name not in found), *(name for name in artifact.buffers if name not in buffers)]
    missing = [*(name for name in found if name not in held), *(name for name in buffers if name not in artifact.buffers)]
    if wrong or missing:
        raise FileFormatError(f"{path}: is of another model: it lacks {missing}, and the model has no {wrong}.")
    fitting = [(found[names[0]], form) for names, form in artifact.forms.items()]
    shapes = {name: tuple(form.shape) for site, form in fitting for name in (site.name, *site.aliases)}
    shapes |= {name: tuple(tensor.shape) for name, tensor in artifact.buffers.items()}
    smaller = _shrunk(path, trial, shapes)
    _shorten(path, into, artifact)
    _quantize(path, into, artifact)
    for module, sizes in smaller.items():
        for attribute, size in sizes.items():
            setattr(into.get_submodule(module), attribute, size)
    for site, form in fitting:
        before = surgery.form_at(into, site)
        if isinstance(form, Dense) and isinstance(before, Dense):
            form.values.requires_grad_(before.values.requires_grad)  # a frozen weight stays frozen
        device = next((leaf.values.device for _, leaf in before.leaves()), None)
        surgery.attach(into, site, form.to(device))
    for name, tensor in artifact.buffers.items():
        owner, _, key = name.rpartition(".")
        before, tensor = buffers[name], tensor.to(buffers[name].device)
        kept = nn.Parameter(tensor, requires_grad=before.requires_grad) if isinstance(before, nn.Parameter) else tensor
        setattr(into.get_submodule(owner), key, kept)
    return into


def _shorten(path: Path | str, model: nn.Module, artifact: Artifact) -> None:
    """Let the model's lists keep only the layers that the file says. Raises FileFormatError where there is no such list."""
    for owner, places in artifact.kept.items():
        try:
            depth.keep(model, owner, places)
        except ValueError as error:
            raise FileFormatError(f"{path}: is of another model: {error}.") from None


def _quantize(path: Path | str, model: nn.Module, artifact: Artifact) -> None:
    """Put the file's activation quantizers on their modules. Raises FileFormatError where there is no such module."""
    device = next((parameter.device for parameter in model.parameters()), None)
    for owner, quantizer in artifact.quantizers.items():
        try:
            activations.attach(model.get_submodule(owner), quantizer.to(device))
        except AttributeError:
            raise FileFormatError(f"{path}: is of another model: it quantizes what flows into {owner!r}.") from None


def _shrunk(path: Path | str, model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, int]]:
    """The integers of each layer that is smaller in the file. Raises FileFormatError where the tensors do not fit the layer."""
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        owner, _, key = name.rpartition(".")
        layers.setdefault(owner, {})[key] = shape
    found: dict[str, dict[str, int]] = {}
    for owner, tensors in layers.items():
        try:
            found[owner] = shrink.integers(model.get_submodule(owner), tensors)
        except ValueError as error:
            raise FileFormatError(f"{path}: is of another model: {f'{owner}.' if owner else ''}{error}.") from None
    if smaller := [owner or "the model itself" for owner, sizes in found.items() if sizes]:
        log.info("%s: these layers are smaller than the model's: %s", path, ", ".join(smaller))
    return found


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """Everything persistent that is not a site: running means, integer tables, the weights of recurrent layers."""
    sites = {name for site in surgery.sites(model) for name in (site.name, *site.aliases)}
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        if "parametrizations" in path.split("."):
            continue
        hidden = module._non_persistent_buffers_set  # pyright: ignore[reportPrivateUsage] - PyTorch has no public way
        own = {name: tensor for name, tensor in module.named_buffers(recurse=False) if name not in hidden}
        for name, tensor in (own | dict(module.named_parameters(recurse=False))).items():
            if (full := f"{path}.{name}" if path else name) not in sites:
                found[full] = tensor
    return found


def _header(schema: int, tool: str, payload: bytes) -> bytes:
    """The safetensors header. A reader builds it again and compares, so that no bit of it can flip unseen."""
    digest = hashlib.sha256(f"kogata {schema} {tool} ".encode() + payload).hexdigest()
    metadata = {"format": "kogata", "schema": str(schema), "sha256": digest, "tool": tool}
    tensor = {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}
    text = json.dumps({"__metadata__": metadata, "payload": tensor}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # safetensors aligns the data
    return struct.pack("<Q", len(text)) + text


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
        if _header(schema, metadata["tool"], bytes(self.payload)) != data[: 8 + length]:
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
            graph = Graph(data=bytes(self.payload[self.offset :]), bindings=bindings)
        elif self.offset != len(self.payload):
            raise ValueError(f"{len(self.payload) - self.offset} bytes follow its last plane")
        packed = Packed(
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


def nodes(form: Form, path: str = "") -> Iterator[tuple[str, Form]]:
    """Every form of a tree with its dotted path, the root first."""
    yield path, form
    for name, part in form.parts().items():
        yield from nodes(part, f"{path}.{name}" if path else name)


def dense_bytes(model: nn.Module) -> int:
    """Bytes of the same model as a plain safetensors file in its own dtypes: what a compression is compared with."""
    header, offset, seen = dict[str, Any](), 0, set[tuple[int, torch.Size]]()
    for name, tensor in sorted(cast("Mapping[str, Tensor]", surgery.plain(model).state_dict()).items()):
        if (tensor.data_ptr(), tensor.shape) in seen and tensor.numel():
            continue  # tied weights are stored once
        seen.add((tensor.data_ptr(), tensor.shape))
        size = tensor.numel() * tensor.itemsize
        dtype = _SAFETENSORS.get(tensor.dtype, "F32")
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"))
    return 8 + -(-len(text) // 8) * 8 + offset
