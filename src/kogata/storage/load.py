"""Load a file into a model of the user's class."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from kogata.errors import FileFormatError
from kogata.forms import Dense, Form
from kogata.network import depth, layers, surgery
from kogata.network.quantizers import attach_quantizer
from kogata.network.sites import buffers_of, form_at, sites_of
from kogata.storage.layout import Artifact
from kogata.storage.read import read_file

log = logging.getLogger("kogata")


def load(path: Path | str, into: nn.Module, *, forms: Sequence[type[Form]] = (), max_bytes: int | None = None) -> nn.Module:
    """Load the weights of a ``.kogata`` file into ``into``, a model of the original class, and return it.

    The parameters of ``into`` are replaced by the forms of the file, which are trainable. Layers that lost channels, and lists
    that lost layers, get the sizes in the file. This works for linear and convolutional layers, batch normalization and
    embeddings. Nothing that a file names is ever imported: if it holds forms of other packages, pass their classes as
    ``forms``. The memory that a file may take is limited to 64 MiB and 1 KiB for each of its bytes, or to 32 times that of
    ``into`` if this is more; ``max_bytes`` sets another limit. Raises FileFormatError when the file is damaged, belongs to
    another model, is over the limit, or holds an unknown form; ``into`` is then unchanged.

    >>> import tempfile, torch, kogata
    >>> net, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     kogata.save(net, f"{folder}/net.kogata")
    ...     torch.equal(kogata.load(f"{folder}/net.kogata", into=other).weight, net.weight)
    True
    """
    artifact = read_file(Path(path), forms=forms, into=into, max_bytes=max_bytes)
    trial = surgery.clone(into)  # errors are found on this copy, before ``into`` is changed
    _shorten(path, trial, artifact)
    _quantize(path, trial, artifact)
    found, buffers = {site.name: site for site in sites_of(trial)}, buffers_of(trial)
    held = dict.fromkeys(names[0] for names in artifact.forms)
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
        before = form_at(into, site)
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
    """Remove the layers that the file does not hold from the model's lists. Raises FileFormatError for a missing list."""
    for owner, places in artifact.kept.items():
        try:
            depth.keep(model, owner, places)
        except ValueError as error:
            raise FileFormatError(f"{path}: is of another model: {error}.") from None


def _quantize(path: Path | str, model: nn.Module, artifact: Artifact) -> None:
    """Attach the activation quantizers of the file to their modules. Raises FileFormatError for a missing module."""
    device = next((parameter.device for parameter in model.parameters()), None)
    for owner, quantizer in artifact.quantizers.items():
        try:
            attach_quantizer(model.get_submodule(owner), quantizer.to(device))
        except AttributeError:
            raise FileFormatError(f"{path}: is of another model: it quantizes the inputs of {owner!r}.") from None


def _shrunk(path: Path | str, model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, int]]:
    """The new integer attributes, such as ``out_features``, of each layer that is smaller in the file.

    Raises FileFormatError when the tensors of a layer do not fit it.
    """
    shapes_by_layer: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        owner, _, key = name.rpartition(".")
        shapes_by_layer.setdefault(owner, {})[key] = shape
    found: dict[str, dict[str, int]] = {}
    for owner, tensors in shapes_by_layer.items():
        try:
            found[owner] = layers.shrunk(model.get_submodule(owner), tensors)
        except ValueError as error:
            raise FileFormatError(f"{path}: is of another model: {f'{owner}.' if owner else ''}{error}.") from None
    if smaller := [owner or "the model itself" for owner, sizes in found.items() if sizes]:
        log.info("%s: these layers are smaller than the model's: %s", path, ", ".join(smaller))
    return found
