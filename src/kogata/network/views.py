"""How a layer's weight meets its inputs: as the matrix that the weight's rows multiply."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata.job import Site

InputRows = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Iterator[Tensor]]
"""Pieces ``[groups, rows, columns]`` of the inputs of one call of a layer."""

PIECE = 1 << 24  # entries of an unfolded input at a time


def input_rows_of(model: nn.Module, site: Site) -> tuple[nn.Module, InputRows] | None:
    """The module whose calls show the inputs of a site's weight, and how; None when they cannot be seen.

    The inputs of an attention's joint projection are seen where query, key and value are one tensor.
    """
    module = model.get_submodule(site.module)
    owner, _, last = site.module.rpartition(".")
    parent = model.get_submodule(owner)
    if isinstance(parent, nn.MultiheadAttention) and last == "out_proj":
        return (parent, _heads) if site.parameter == "weight" else None
    if isinstance(module, nn.MultiheadAttention):
        return (module, _attended) if site.parameter == "in_proj_weight" else None
    if site.parameter != "weight":
        return None
    if isinstance(module, nn.Linear):
        return module, _rows
    return (module, _columns) if isinstance(module, nn.Conv1d | nn.Conv2d) else None


def _input(args: tuple[Any, ...], kwargs: dict[str, Any], name: str = "input") -> Tensor:
    return (args[0] if args else kwargs[name]).detach()


def _rows(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    inputs = _input(args, kwargs)
    yield inputs.reshape(1, -1, inputs.shape[-1])


def _attended(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    query, key, value = (args[i] if len(args) > i else kwargs[name] for i, name in enumerate(("query", "key", "value")))
    if query is key and key is value:
        yield query.detach().reshape(1, -1, query.shape[-1])


def _heads(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """What the heads give is what the attention would with an identity as its last projection, so it is run with one."""
    attention = cast("nn.MultiheadAttention", layer)
    twin = type(attention).__new__(type(attention))  # copy.copy refuses modules with parametrizations
    weight = attention.out_proj.weight
    identity = nn.modules.linear.NonDynamicallyQuantizableLinear(
        len(weight), len(weight), device=weight.device, dtype=weight.dtype
    )
    with torch.no_grad():
        identity.weight.copy_(torch.eye(len(weight)))
        identity.bias.zero_()
    children = dict(attention.named_children()) | {"out_proj": identity}
    twin.__dict__.update(attention.__dict__ | {"_modules": children, "_forward_pre_hooks": OrderedDict()})
    yield twin(*args, **kwargs)[0].reshape(1, -1, len(weight))


def _columns(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """A few images at a time, because each is unfolded into as many copies as the kernel has places."""
    convolution = cast("nn.Conv2d", layer)
    inputs = _input(args, kwargs)
    count = max(1, PIECE // (inputs[0].numel() * torch.Size(convolution.kernel_size).numel()))
    for piece in inputs.split(count):
        columns_NIL = unfolded(convolution, piece)
        samples, columns, _ = columns_NIL.shape
        grouped = columns_NIL.reshape(samples, convolution.groups, columns // convolution.groups, -1)
        yield grouped.permute(1, 0, 3, 2).flatten(1, 2)


def unfolded(layer: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    """The patches ``[samples, columns, places]`` of ``[samples, channels, ...]`` that the flattened weight multiplies."""
    pads: list[int] = layer._reversed_padding_repeated_twice  # pyright: ignore[reportPrivateUsage] - "same" is resolved there
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    inputs = functional.pad(inputs, pads, mode=mode)
    if isinstance(layer, nn.Conv1d):
        inputs = inputs.unsqueeze(2)
    kernel, stride, dilation = ((1,) * (2 - len(v)) + tuple(v) for v in (layer.kernel_size, layer.stride, layer.dilation))
    return functional.unfold(inputs, cast("Any", kernel), cast("Any", dilation), stride=cast("Any", stride))
