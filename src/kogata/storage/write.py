"""Write a model as a ``.kogata`` file: the same model gives the same bytes."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

from torch import nn

from kogata._version import __version__
from kogata.coding import CODERS, Coder, Plane, encode
from kogata.coding.packed import packed_bytes
from kogata.forms import Form
from kogata.forms.base import float_plane
from kogata.network import depth
from kogata.network.quantizers import quantizers_of
from kogata.network.sites import buffers_of, form_at, sites_of
from kogata.storage.layout import SCHEMA, EngineGraph, PackedFile, Stored, file_header
from kogata.system.atomic import writing


def pack(model: nn.Module, graph: EngineGraph | None = None, coders: tuple[Coder, ...] = CODERS) -> PackedFile:
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
    for site in sites_of(model):
        manifest["sites"].append([[site.name, *site.aliases], tree(site.name, "", form_at(model, site))])
    for name, tensor in buffers_of(model).items():
        plane = float_plane(tensor) if tensor.is_floating_point() else Plane.integers(tensor.cpu().numpy())
        dtype = str(tensor.dtype).removeprefix("torch.")
        manifest["buffers"][name] = [dtype, code(name, "buffer", plane)]
    if quantizers := {path: quantizer.header() for path, quantizer in quantizers_of(model)}:
        manifest["activations"] = quantizers
    if kept := depth.shortened(model):
        manifest["kept"] = kept
    if graph is not None:
        manifest["graph"] = {name: list(binding) for name, binding in graph.bindings.items()}
    text = json.dumps(manifest, separators=(",", ":")).encode()
    deflated = zlib.compress(text, 9)
    payload = b"".join([struct.pack("<I", len(deflated)), deflated, *blobs, graph.data if graph else b""])
    header = file_header(SCHEMA, __version__, payload)
    return PackedFile(
        data=header + payload, planes=tuple(lines), header_bytes=len(header), manifest_bytes=4 + len(deflated),
        graph_bytes=len(graph.data) if graph else 0,
    )  # fmt: skip


def write_file(path: Path, packed: PackedFile) -> None:
    """Write the file whole or not at all."""
    with writing(path) as file:
        file.write(packed.data)


def save(model: nn.Module, path: Path | str) -> None:
    """Write a model as a file, forms and all, without an engine graph: what :func:`load` reads.

    Raises UsageError while the model is still in training under a method, DataError when the file cannot be written.
    """
    write_file(Path(path), pack(model))
