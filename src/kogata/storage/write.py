"""Write a model as a ``.kogata`` file. The same model always gives the same bytes."""

from __future__ import annotations

import struct
from collections.abc import Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kogata._version import __version__
from kogata.coding import CODERS, Coder, Plane, encode
from kogata.coding.packed import packed_bytes
from kogata.errors import UsageError
from kogata.forms import FORMS, Form
from kogata.forms.base import float_plane, nodes
from kogata.network import depth, layers
from kogata.network.quantizers import quantizers_of
from kogata.network.sharing import place_of
from kogata.network.sites import buffers_of, form_at, sites_of, unwrapped
from kogata.storage.extra import encoded, extra_states
from kogata.storage.layout import INLINE, SCHEMA, EngineGraph, PackedFile, Stored, file_header, plane_entry
from kogata.storage.manifest import MAX_NUMBER, Entry, pieces, write_manifest
from kogata.system.atomic import writing


def pack(model: nn.Module, graph: EngineGraph | None = None, coders: tuple[Coder, ...] = CODERS) -> PackedFile:
    """Encode the model as the bytes of a file. Each plane uses the one of ``coders`` that gives the fewest bytes.

    Raises UsageError while the model is still wrapped for training by a method, and for a form without a unique tag.
    """
    model = unwrapped(model)
    writer, entries = _Writer(coders), list[Entry]()
    sites, buffers = sites_of(model), buffers_of(model)
    for site in sites:
        names = [pieces(name) for name in (site.name, *site.aliases)]
        entries.append(["weight", names, writer.node(site.name, "", form_at(model, site))])
    stored: dict[Hashable, str] = {}  # the first name of the numbers at each place
    for name, tensor in buffers.items():
        first = stored.setdefault(place_of(tensor), name) if tensor.numel() else name
        entries.append(writer.buffer(name, tensor) if first == name else ["same", pieces(name), pieces(first)])
    entries[:0] = [["provider", form.TAG, f"{form.__module__}:{form.__qualname__}"] for form in foreign_forms(model)]
    for path, quantizer in quantizers_of(model):
        entries.append(["quantizer", pieces(path), quantizer.TAG, quantizer.header()])
    for path, state in extra_states(model)[0].items():
        entries.append(["extra", pieces(path), encoded(state, partial(writer.extra, path))])
    entries += [["kept", pieces(path), list(places)] for path, places in depth.shortened(model).items()]
    for path, module in model.named_modules():
        if full := layers.full_sizes(module):
            entries.append(["full", pieces(path), full])
    if graph is not None:
        entries += _graph_entries(graph, [*(site.name for site in sites), *buffers])
    manifest = write_manifest(entries)
    payload = b"".join([struct.pack("<I", len(manifest)), manifest, *writer.blobs, graph.data if graph else b""])
    header = file_header(SCHEMA, __version__, payload)
    return PackedFile(
        data=header + payload, planes=tuple(writer.stored), header_bytes=len(header), manifest_bytes=4 + len(manifest),
        graph_bytes=len(graph.data) if graph else 0,
    )  # fmt: skip


class _Writer:
    """Encodes planes and collects their bytes in order."""

    def __init__(self, coders: tuple[Coder, ...]) -> None:
        self.coders, self.blobs, self.stored = coders, list[bytes](), list[Stored]()

    def plane(self, site: str, name: str, plane: Plane) -> list[object]:
        coded = encode(plane, self.coders)
        self.blobs.append(coded.data)
        self.stored.append(Stored(
            site=site, plane=name, elements=plane.spec.size, coder=coded.coder, bytes=len(coded.data),
            packed_bytes=packed_bytes(plane.spec), entropy_bits=coded.entropy_bits,
        ))  # fmt: skip
        return plane_entry(plane.spec, len(coded.data))

    def node(self, site: str, path: str, form: Form) -> list[Any]:
        planes = {name: self.plane(site, f"{path}{name}", plane) for name, plane in form.planes().items()}
        parts = {name: self.node(site, f"{path}{name}.", part) for name, part in form.parts().items()}
        return [form.TAG, form.header(), planes, parts]

    def buffer(self, name: str, tensor: Tensor) -> Entry:
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tensor.is_floating_point():
            return ["buffer", pieces(name), dtype, self.plane(name, "buffer", float_plane(tensor))]
        values = tensor.flatten()[:INLINE].long().tolist()
        if tensor.numel() <= INLINE and all(-MAX_NUMBER < value < MAX_NUMBER for value in values):
            return ["integers", pieces(name), dtype, list(tensor.shape), values]
        return ["buffer", pieces(name), dtype, self.plane(name, "buffer", Plane.integers(tensor.cpu().numpy()))]

    def extra(self, path: str, tensor: Tensor) -> list[Any]:
        """The plane, in a list, of a tensor in the extra state of the module at ``path``."""
        plane = float_plane(tensor) if tensor.is_floating_point() else Plane.integers(tensor.detach().cpu().numpy())
        return [self.plane(f"{path}.extra_state".lstrip("."), "extra", plane)]


def foreign_forms(model: nn.Module) -> tuple[type[Form], ...]:
    """The form classes of other packages in the model, as :func:`kogata.load` needs them.

    Raises UsageError for a class without a tag or with the tag of another class.
    """
    known = {form.TAG: form for form in FORMS}
    found: dict[str, type[Form]] = {}
    for site in sites_of(model):
        for _, form in nodes(form_at(model, site)):
            kind = type(form)
            if not kind.TAG:
                raise UsageError(f"{site.name}: the form {kind.__name__} has no TAG; a form needs one to be stored.")
            if (other := known.setdefault(kind.TAG, kind)) is not kind:
                raise UsageError(f"{site.name}: the forms {kind.__name__} and {other.__name__} share the TAG {kind.TAG!r}.")
            if kind not in FORMS:
                found[kind.TAG] = kind
    return tuple(found.values())


def _graph_entries(graph: EngineGraph, tensors: Sequence[str]) -> list[Entry]:
    """The length of the graph and, for each initializer removed from it, the number of the tensor with its values."""
    numbers = {name: number for number, name in enumerate(tensors)}
    entries: list[Entry] = [["graph", len(graph.data)]]
    for name, (tensor, path, transposed) in graph.bindings.items():
        own = None if name == tensor else pieces(name)
        entries.append(["bound", numbers[tensor], own, path, transposed])
    return entries


def write_file(path: Path, packed: PackedFile) -> None:
    """Write the file atomically."""
    with writing(path) as file:
        file.write(packed.data)


def save(model: nn.Module, path: Path | str) -> None:
    """Write a model with its forms as a ``.kogata`` file, without an engine graph. :func:`kogata.load` reads it.

    Raises UsageError while the model is still wrapped for training by a method, and DataError when the file cannot be written.

    >>> import tempfile, torch, kogata
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     kogata.save(torch.nn.Linear(64, 64), f"{folder}/net.kogata")
    ...     Path(folder, "net.kogata").stat().st_size > 0
    True
    """
    write_file(Path(path), pack(model))
