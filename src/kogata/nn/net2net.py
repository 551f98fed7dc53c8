"""Net2Net: a wider or deeper network that computes the same function as a trained one, as a start for further training.

Chen, Goodfellow, Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016 (1511.05641), section 2.
Wider: let U be the weights that produce the channels of a layer and W those that read them. With g(j) = j for the old channels
and g(j) a random old channel for each new j,
    U'[j] = U[g(j)],   W'[:, j] = W[:, g(j)] / |{i : g(i) = g(j)}|.
Deeper: insert an identity layer and another activation φ behind an activation with φ(I φ(v)) = φ(v), as ReLU has. A batch
normalization in the new layer starts as the identity: scale and shift are the standard deviation and mean of its inputs.

Both return a new network. Its file loads into a network that was made wider or deeper in the same way.
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
    """Copy ``model`` with ``width`` output channels in the layer at path ``layer``; the layers that read them are adapted.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    >>> x = torch.randn(5, 4)
    >>> wide = wider(net, "0", 12, x)
    >>> wide[0].out_features, torch.allclose(wide(x), net(x), atol=1e-5)
    (12, True)

    :param width: the new number of output channels, above the old one.
    :param inputs: a batch of at least two examples, with which the model is traced.
    :param noise: standard deviation of noise added to the weights of new channels, relative to that of the whole weight; it
        lets copies of a channel diverge in training. With 0 the function is preserved exactly.
    :param seed: seed of the choice of channels and of the noise.
    :raises NotApplicable: the channels of the layer cannot be traced through the model.
    :raises UsageError: ``width`` is not above the present number of channels.
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
    """Copy ``model`` with an identity layer and a ReLU inserted behind the module at path ``activation``.

    Behind feature maps ``[N, C, H, W]`` the identity layer is a 3×3 convolution, behind vectors ``[..., C]`` a linear layer.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    >>> x = torch.randn(5, 4)
    >>> deep = deeper(net, "1", x)
    >>> deep[1], torch.allclose(deep(x), net(x), atol=1e-5)
    (Sequential(
      (0): ReLU()
      (1): Linear(in_features=8, out_features=8, bias=True)
      (2): ReLU()
    ), True)

    :param inputs: a batch with which the model is run; it gives the shapes and the statistics.
    :param normalized: add batch normalization after the convolution, with the statistics of ``inputs``.
    :param noise: standard deviation of noise added to the identity's weight, relative to that of this weight; 0 preserves the
        function exactly.
    :param seed: seed of the noise.
    :raises NotApplicable: ``activation`` is not ReLU or one like it, or has negative outputs, which ReLU would change.
    """
    old = model.get_submodule(activation)
    seen: list[Tensor] = []
    handle = old.register_forward_hook(lambda _, __, output: seen.append(cast("Tensor", output)))
    with evaluating(model):
        call(model, inputs)
    handle.remove()
    if not seen or not isinstance(old, IDEMPOTENT) or bool((seen[0] < 0).any()):
        raise NotApplicable(
            f"net2net: {activation!r} is {type(old).__name__}; an identity layer and ReLU keep the function only behind a ReLU."
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
    """The group of coupled channels that the layer produces."""
    coupling, name = coupled(model, inputs), f"{layer}.weight"
    group = next((g for g in coupling.groups if any(part.name == name and part.makes for part in g.slices)), None)
    if group is None:
        raise NotApplicable(f"net2net: {layer!r} cannot be wider: {coupling.refused.get(name, 'it has no output channels')}.")
    return group


def _widen(twin: nn.Module, part: Slice, source_C: Tensor, noise: float, generator: torch.Generator) -> None:
    """Widen one tensor to the channels of ``source_C``: each new channel copies the entries of its source channel."""
    path, _, key = part.name.rpartition(".")
    layer, tensor = twin.get_submodule(path), cast("Tensor", getattr(twin.get_submodule(path), key))
    attribute = (*kind_of(layer).integers(layer).get(key, ()), None, None)[part.axis]
    channels, places = part.index_CK.shape
    by_channel = torch.arange(channels * places).reshape(channels, places)
    by_place = torch.arange(channels * places).reshape(places, channels).T
    inner = torch.equal(part.index_CK, by_channel)  # the entries of a channel are adjacent, as in flattened feature maps
    known = (inner or torch.equal(part.index_CK, by_place)) and tensor.shape[part.axis] == channels * places
    grouped = isinstance(layer, nn.modules.conv._ConvNd) and layer.groups > 1  # pyright: ignore[reportPrivateUsage]
    if not known or attribute is None or grouped or (part.makes and part.reads):
        raise NotApplicable(f"net2net: {part.name} of shape {tuple(tensor.shape)} cannot get more channels of this layer.")

    def entries(of_C: Tensor) -> Tensor:
        """Repeat one value per channel for each of the channel's entries, in the order of the tensor."""
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
    """Layers that compute the identity on tensors of the shape of ``flow``."""
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
    """Raise NotApplicable unless both models compute the same function on ``inputs``."""
    with evaluating(model), evaluating(twin):
        error = float(output_error(call(twin, inputs), call(model, inputs)))
    if not error <= 1e-8:
        raise NotApplicable(f"net2net: {what} does not preserve the function (relative squared error {error:.1e}).")
