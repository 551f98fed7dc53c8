"""Load a file into a model of the user's class."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kogata.errors import DataError, FileFormatError
from kogata.forms import Form
from kogata.network import depth, layers, surgery
from kogata.network.quantizers import attach_quantizer
from kogata.network.sharing import overlaps
from kogata.network.sites import buffers_of, form_at, sites_of, unwrapped
from kogata.storage.extra import give_back
from kogata.storage.layout import Artifact
from kogata.storage.read import read_file

log = logging.getLogger("kogata")


def load(path: Path | str, into: nn.Module, *, forms: Sequence[type[Form]] = (), max_bytes: int | None = None) -> nn.Module:
    """Load the weights of a ``.kogata`` file into ``into``, a model of the original class, and return it.

    The parameters of ``into`` are replaced by the forms of the file, which are trainable where the parameters were. Those of a
    model on the ``meta`` device come to the CPU. Layers that lost channels, and lists that lost layers, get the sizes in the
    file. This works for linear and convolutional layers, batch normalization and embeddings. Nothing that a file names is ever
    imported: if it holds forms of other packages, pass their classes as ``forms``. The memory that a file may take is limited
    to 64 MiB and 1 KiB for each of its bytes, or to 32 times that of ``into`` if this is more; ``max_bytes`` sets another
    limit. Raises FileFormatError when the file is damaged, belongs to another model, is over the limit, or holds an unknown
    form, and DataError when ``into`` has a lazy parameter, or a tensor on ``meta`` that the file does not hold; ``into`` is
    then unchanged.

    >>> import tempfile, torch, kogata
    >>> net, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     kogata.save(net, f"{folder}/net.kogata")
    ...     torch.equal(kogata.load(f"{folder}/net.kogata", into=other).weight, net.weight)
    True
    """
    given, into = into, unwrapped(into)
    _refuse_unmade(path, into)
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
    smaller = _shrunk(path, trial, shapes, artifact.full)
    give_back(path, into, artifact.extra)
    dtypes = _float_dtypes((*into.parameters(), *buffers_of(into).values()))
    _shorten(path, into, artifact)
    _quantize(path, into, artifact)
    for module, sizes in smaller.items():
        layers.resize(into.get_submodule(module), sizes)
    for site, form in fitting:
        device = next((leaf.values.device for _, leaf in form_at(into, site).leaves()), None)
        surgery.attach(into, site, form.to(_home(device)))
    views = overlaps(buffers.items())
    for name, tensor in artifact.buffers.items():
        owner, _, key = name.rpartition(".")
        before, tensor = buffers[name], tensor.to(_home(buffers[name].device))
        if name in views and before.dtype == tensor.dtype and not before.is_meta:
            before.detach().copy_(tensor)  # another tensor of the model is a view of this one, or of a part of it
            continue
        kept = nn.Parameter(tensor, requires_grad=before.requires_grad) if isinstance(before, nn.Parameter) else tensor
        setattr(into.get_submodule(owner), key, kept)
    _follow(into, dtypes)
    return given


def _refuse_unmade(path: Path | str, model: nn.Module) -> None:
    """Raises DataError for a model with lazy parameters, or with tensors on ``meta`` that no file holds."""
    lazy = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if is_lazy(tensor)]
    if lazy:
        raise DataError(f"{path}: the model's {lazy[0]} has no shape yet. Call the model once on inputs, then load into it.")
    stored = model.state_dict().keys()
    lost = [name for name, tensor in model.named_buffers() if tensor.is_meta and name not in stored]
    if lost:
        raise DataError(
            f"{path}: the model's {lost[0]} is on the meta device and is not persistent, so no file has its values. Build the "
            "model on another device."
        )


def _home(device: torch.device | None) -> torch.device | None:
    """The device for values from a file that take the place of a tensor on ``device``; ``meta`` would drop the values."""
    return torch.device("cpu") if device is not None and device.type == "meta" else device


def _float_dtypes(tensors: Iterable[Tensor]) -> set[torch.dtype]:
    return {tensor.dtype for tensor in tensors if tensor.is_floating_point()}


def _follow(model: nn.Module, before: set[torch.dtype]) -> None:
    """Convert the buffers that no file holds, such as tables of rotary embeddings, as ``model.to(dtype)`` would.

    ``before`` has the float types that the model's stored tensors had. Only a change from one type to one other is followed.
    """
    after = _float_dtypes((*model.parameters(), *buffers_of(model).values()))
    if len(before) == len(after) == 1 and before != after:
        (dtype,) = after
        for module in model.modules():
            for name in module._non_persistent_buffers_set:  # pyright: ignore[reportPrivateUsage] - there is no public way
                tensor = getattr(module, name)
                if isinstance(tensor, Tensor) and {tensor.dtype} == before:
                    setattr(module, name, tensor.to(dtype))


def _shorten(path: Path | str, model: nn.Module, artifact: Artifact) -> None:
    """Remove the layers that the file does not hold from the model's lists. Raises FileFormatError for a missing list."""
    for owner, places in artifact.kept.items():
        try:
            depth.keep(model, owner, places)
        except ValueError as error:
            raise FileFormatError(f"{path}: is of another model: {error}.") from None


def _quantize(path: Path | str, model: nn.Module, artifact: Artifact) -> None:
    """Attach the activation quantizers of the file to their modules. Raises FileFormatError for a missing module."""
    device = _home(next((parameter.device for parameter in model.parameters()), None))
    for owner, quantizer in artifact.quantizers.items():
        try:
            attach_quantizer(model.get_submodule(owner), quantizer.to(device))
        except AttributeError:
            raise FileFormatError(f"{path}: is of another model: it quantizes the inputs of {owner!r}.") from None


def _check_full(
    layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int], full: Mapping[str, int]
) -> None:
    """Raises ValueError unless each attribute that is to become smaller was, in the file's model, as large as in this layer."""
    for attribute in sizes:
        if full.get(attribute) != getattr(layer, attribute):
            pairs = [(name, shape, tuple(getattr(layer, name).shape)) for name, shape in shapes.items()]
            name, shape, own = next(pair for pair in pairs if pair[1] != pair[2])
            raise ValueError(
                f"{name} has shape {shape}, but the model has {own}, and no channels were removed from a layer of that size"
            )


def _shrunk(
    path: Path | str,
    model: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    full: Mapping[str, Mapping[str, int]] | None,
) -> dict[str, dict[str, int]]:
    """The new integer attributes, such as ``out_features``, of each layer that is smaller in the file.

    Raises FileFormatError when the tensors of a layer do not fit it, or when it is smaller in the file but was not as large as
    the model's before it lost channels (``full``).
    """
    shapes_by_layer: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        owner, _, key = name.rpartition(".")
        shapes_by_layer.setdefault(owner, {})[key] = shape
    found: dict[str, dict[str, int]] = {}
    for owner, tensors in shapes_by_layer.items():
        try:
            found[owner] = layers.shrunk(layer := model.get_submodule(owner), tensors)
            if full is not None:
                _check_full(layer, tensors, found[owner], full.get(owner, {}))
        except ValueError as error:
            raise FileFormatError(f"{path}: is of another model: {f'{owner}.' if owner else ''}{error}.") from None
    if smaller := [owner or "the model itself" for owner, sizes in found.items() if sizes]:
        log.info("%s: these layers are smaller than the model's: %s", path, ", ".join(smaller))
    return found
