"""Net2Net: a wider or deeper net that computes what a trained one does, to go on training from there.

Chen, Goodfellow, Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016 (1511.05641), section 2.
Wider, with g(j) = j for the channels that there are and a random one of them for each new j, makers U and readers W:
    U'[j] = U[g(j)],   W'[:, j] = W[:, g(j)] / |{i : g(i) = g(j)}|.
Deeper: an identity layer behind an activation that keeps what it gave, φ(I φ(v)) = φ(v), as the rectifier does. A batch
normalization in it undoes itself: its gain and bias are the deviation and the mean of what flows in.

Both give a new net: its file loads into a net that was made wider or deeper in the same way.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from kogata.errors import NotApplicable, UsageError
from kogata.network import surgery
from kogata.network.batch import call, evaluating, output_error
from kogata.network.channels.groups import Group, Slice, coupled
from kogata.network.layers import kind_of

IDEMPOTENT = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Threshold, nn.Identity)


def wider(model: nn.Module, layer: str, width: int, inputs: Any, *, noise: float = 0.0, seed: int = 0) -> nn.Module:
    """A copy of ``model`` in which the layer at path ``layer`` has ``width`` output channels, and what reads them follows.

    ``inputs`` are two rows or more to trace the model with. ``noise`` is the deviation of what is added to the new channels'
    weights, relative to the deviation of the weight, so that twins grow apart; with 0 the function is kept exactly. Raises
    NotApplicable when the layer's channels cannot be followed, UsageError when ``width`` is no more than there is.
    """
    group = _group(model, layer, inputs)
    if width <= group.channels:
        raise UsageError(f"net2net: {layer} has {group.channels} channels already; expected a width above, not {width}.")
    generator = torch.Generator().manual_seed(seed)
    extra = torch.randint(group.channels, (width - group.channels,), generator=generator)
    source_C = torch.cat([torch.arange(group.channels), extra])
    twin = surgery.clone(model, share=False)
    for part in group.slices:
        _widen(twin, part, source_C, noise, generator)
    if not noise:
        _same(model, twin, inputs, f"wider {layer}")
    return twin


def deeper(
    model: nn.Module, activation: str, inputs: Any, *, normalized: bool = False, noise: float = 0.0, seed: int = 0
) -> nn.Module:
    """A copy of ``model`` with an identity layer and a rectifier behind the module at path ``activation``, in its place.

    Behind images ``[N, C, H, W]`` it is a 3×3 convolution, with ``normalized`` one with batch normalization, whose statistics
    are those of ``inputs``; behind vectors ``[..., C]`` a linear layer. ``noise`` as in :func:`wider`. Raises NotApplicable
    where the rectifier would change what ``activation`` gives.
    """
    old = model.get_submodule(activation)
    seen: list[Tensor] = []
    handle = old.register_forward_hook(lambda _, __, output: seen.append(cast("Tensor", output)))
    with evaluating(model):
        call(model, inputs)
    handle.remove()
    if not seen or not isinstance(old, IDEMPOTENT) or bool((seen[0] < 0).any()):
        raise NotApplicable(
            f"net2net: {activation!r} is {type(old).__name__}; only behind a rectifier is an identity layer one."
        )
    layers, generator = _identity(seen[0], normalized=normalized), torch.Generator().manual_seed(seed)
    weight = layers[0].get_parameter("weight")
    weight.data.add_(_noise(weight.detach(), noise, generator))
    twin = surgery.clone(model, share=False)
    parent, _, name = activation.rpartition(".")
    setattr(twin.get_submodule(parent), name, nn.Sequential(twin.get_submodule(activation), *layers, nn.ReLU()))
    if not noise:
        _same(model, twin, inputs, f"deeper {activation}")
    return twin


def _group(model: nn.Module, layer: str, inputs: Any) -> Group:
    """The channels that the layer makes."""
    coupling, name = coupled(model, inputs), f"{layer}.weight"
    group = next((g for g in coupling.groups if any(part.name == name and part.makes for part in g.slices)), None)
    if group is None:
        raise NotApplicable(f"net2net: {layer!r} cannot be wider: {coupling.refused.get(name, 'it makes no channels')}.")
    return group


def _widen(twin: nn.Module, part: Slice, source_C: Tensor, noise: float, generator: torch.Generator) -> None:
    """Let one tensor have an entry, or several, for each channel of ``source_C``, a copy of that of its source."""
    path, _, key = part.name.rpartition(".")
    layer, tensor = twin.get_submodule(path), cast("Tensor", getattr(twin.get_submodule(path), key))
    attribute = (*kind_of(layer).integers(layer).get(key, ()), None, None)[part.axis]
    channels, places = part.index_CK.shape
    by_channel = torch.arange(channels * places).reshape(channels, places)
    by_place = torch.arange(channels * places).reshape(places, channels).T
    inner = torch.equal(part.index_CK, by_channel)  # the places of a channel lie together, as flattened images have them
    known = (inner or torch.equal(part.index_CK, by_place)) and tensor.shape[part.axis] == channels * places
    grouped = isinstance(layer, nn.modules.conv._ConvNd) and layer.groups > 1  # pyright: ignore[reportPrivateUsage]
    if not known or attribute is None or grouped or (part.makes and part.reads):
        raise NotApplicable(f"net2net: {part.name} of shape {tuple(tensor.shape)} cannot get more of these channels.")

    def entries(of_C: Tensor) -> Tensor:
        """Of each channel, as a value of each of its entries in their order."""
        of_CK = of_C[:, None].expand(-1, places)
        return (of_CK if inner else of_CK.T).flatten()

    chosen_CK = part.index_CK[source_C]
    wide = tensor.detach().index_select(part.axis, (chosen_CK if inner else chosen_CK.T).flatten())
    if part.reads:
        copies = entries(torch.bincount(source_C)[source_C])
        wide /= copies.reshape([-1 if axis == part.axis else 1 for axis in range(wide.ndim)])
    if tensor.ndim >= 2:
        new = entries(torch.arange(len(source_C)) >= channels).nonzero().flatten()
        wide.index_add_(part.axis, new, _noise(wide.index_select(part.axis, new), noise, generator))
    setattr(layer, key, nn.Parameter(wide, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else wide)
    setattr(layer, attribute, wide.shape[part.axis])


def _identity(flow: Tensor, *, normalized: bool) -> list[nn.Module]:
    """Layers that give what they are given, of the kind and width of ``flow``."""
    if flow.ndim != 4:
        linear = nn.Linear(flow.shape[-1], flow.shape[-1], device=flow.device, dtype=flow.dtype)
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
        return [linear]
    channels = flow.shape[1]
    kernel = nn.Conv2d(channels, channels, 3, padding=1, bias=not normalized, device=flow.device, dtype=flow.dtype)
    nn.init.dirac_(kernel.weight)
    if kernel.bias is not None:
        nn.init.zeros_(kernel.bias)
        return [kernel]
    norm = nn.BatchNorm2d(channels, device=flow.device, dtype=flow.dtype).eval()
    variance, mean = torch.var_mean(flow, (0, 2, 3), correction=0)
    norm.load_state_dict({
        "running_mean": mean, "running_var": variance, "bias": mean, "weight": (variance + norm.eps).sqrt(),
        "num_batches_tracked": torch.tensor(1),
    })  # fmt: skip
    return [kernel, norm]


def _noise(weight: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    return noise * weight.std() * torch.randn(weight.shape, generator=generator).to(weight)


def _same(model: nn.Module, twin: nn.Module, inputs: Any, what: str) -> None:
    """Raise NotApplicable unless both compute the same."""
    with evaluating(model), evaluating(twin):
        error = float(output_error(call(twin, inputs), call(model, inputs)))
    if not error <= 1e-8:
        raise NotApplicable(f"net2net: {what} computes something else (relative squared error {error:.1e}).")
