"""Layers that lost channels: which of a layer's integers its tensors spell out, and how they follow when tensors shrink."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

_Shape = tuple[int, ...]
Layout = Mapping[str, tuple[str | None, ...]]
"""For each tensor, the attribute that each of its first axes measures; None measures nothing that may change."""

_CONVOLUTION: Layout = {"weight": ("out_channels", "in_channels"), "bias": ("out_channels",)}
_GROUPED: Layout = {"weight": ("out_channels", None), "bias": ("out_channels",)}
_TRANSPOSED: Layout = {"weight": ("in_channels", "out_channels"), "bias": ("out_channels",)}
_LINEAR: Layout = {"weight": ("out_features", "in_features"), "bias": ("out_features",)}
_NORM: Layout = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), ("num_features",))
_EMBEDDING: Layout = {"weight": (None, "embedding_dim")}


def layout(layer: nn.Module) -> Layout:
    """For each tensor that may shrink, the integer attribute behind each of its first axes; empty where none may.

    Of grouped convolutions only depthwise ones may lose channels.
    """
    if isinstance(layer, nn.Linear):
        return _LINEAR
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):  # pyright: ignore[reportPrivateUsage] - the only common base
        return _TRANSPOSED if layer.groups == 1 else {}
    if isinstance(layer, nn.modules.conv._ConvNd):  # pyright: ignore[reportPrivateUsage]
        return _CONVOLUTION if layer.groups == 1 else _GROUPED if layer.groups == layer.in_channels else {}
    if isinstance(layer, nn.modules.batchnorm._NormBase):  # pyright: ignore[reportPrivateUsage]
        return _NORM
    return _EMBEDDING if isinstance(layer, nn.Embedding) else {}


def integers(layer: nn.Module, shapes: Mapping[str, _Shape]) -> dict[str, int]:
    """The attributes of ``layer`` once its tensors, by name, have these shapes; only those that change.

    Raises ValueError, with the reason, when a tensor would grow, or shrink along an axis that must stay, or when two tensors
    disagree.
    """
    before_by_name = {name: tuple(cast("Tensor", getattr(layer, name)).shape) for name in shapes}
    if before_by_name == dict(shapes):
        return {}
    found: dict[str, int] = {}
    for name, shape in shapes.items():
        old = before_by_name[name]
        axes = layout(layer).get(name, ())
        if len(shape) != len(old):
            raise ValueError(f"{name} has shape {shape}, but the model has {old}")
        for axis, (now, before) in enumerate(zip(shape, old, strict=True)):
            attribute = axes[axis] if axis < len(axes) else None
            if now != before and (attribute is None or not 1 <= now < before):
                raise ValueError(f"{name} has shape {shape}, but the model has {old}")
            if attribute is not None and found.setdefault(attribute, now) != now:
                raise ValueError(f"{name} has shape {shape}, which does not fit {attribute} = {found[attribute]}")
    if isinstance(layer, nn.modules.conv._ConvNd) and layout(layer) is _GROUPED:  # pyright: ignore[reportPrivateUsage]
        each = layer.out_channels // layer.groups  # output channels of one input channel
        if found["out_channels"] % each:
            raise ValueError(f"{found['out_channels']} output channels are no multiple of {each} for each input channel")
        found["in_channels"] = found["groups"] = found["out_channels"] // each
    return {name: value for name, value in found.items() if value != cast("int", getattr(layer, name))}
