"""Kinds of layers: the one table of what only a layer's class can tell of its weights.

What multiplies a weight, and by which inputs, is seen where it happens (``operations.py``), whatever the class. The class tells
what must be known without running the model, or to build it: the kind of its matrices, how they lie in a parameter where they
do not lie as ``[outputs, inputs, *kernel]``, and which of the layer's integers follow from the shapes of its tensors, so that a
layer that lost channels can be built as small as they are. A new kind of layer is one more entry of ``KINDS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from kogata.job import Kind, Layout

FULL = "kogata_full"  # on a layer that lost channels: its integer attributes before it lost any
Integers = Mapping[str, tuple[str | None, ...]]
"""For each tensor the attribute that gives the size of each of its first axes; None where that axis may not shrink."""


@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """One kind of layer.

    ``integers`` and ``layout`` say of a layer what the module's docstring says; ``layout`` also takes the weight's name.
    ``padding`` is the row of the weight that stands for padding, if there is one. ``rounded`` layers have one input that their
    weight multiplies, which a quantizer of activations may round.
    """

    classes: tuple[type[nn.Module], ...]
    kind: Kind
    integers: Callable[[nn.Module], Integers] = lambda _: {}
    layout: Callable[[nn.Module, str], Layout | None] = lambda _, __: None
    padding: Callable[[nn.Module], int | None] = lambda _: None
    rounded: bool = False


_CONVOLUTION: Integers = {"weight": ("out_channels", "in_channels"), "bias": ("out_channels",)}
_GROUPED: Integers = {"weight": ("out_channels", None), "bias": ("out_channels",)}
_TRANSPOSED: Integers = {"weight": ("in_channels", "out_channels"), "bias": ("out_channels",)}
_LINEAR: Integers = {"weight": ("out_features", "in_features"), "bias": ("out_features",)}
_NORM: Integers = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), ("num_features",))
_EMBEDDING: Integers = {"weight": (None, "embedding_dim")}
_ConvNd = nn.modules.conv._ConvNd  # pyright: ignore[reportPrivateUsage] - the only common base, subclasses included
_ConvTransposeNd = nn.modules.conv._ConvTransposeNd  # pyright: ignore[reportPrivateUsage]
_NormBase = nn.modules.batchnorm._NormBase  # pyright: ignore[reportPrivateUsage]


def _convolution(layer: nn.Module) -> Integers:
    """Of grouped convolutions only depthwise ones may lose channels."""
    convolution = cast("nn.Conv2d", layer)
    if convolution.groups == 1:
        return _CONVOLUTION
    return _GROUPED if convolution.groups == convolution.in_channels else {}


def _transposed(layer: nn.Module, name: str) -> Layout | None:
    """``[inputs, outputs of a group, *kernel]``, the groups one after another along the first axis."""
    if name != "weight":
        return None
    convolution = cast("nn.ConvTranspose2d", layer)
    inputs, outputs, *kernel = cast("Tensor", layer.weight).shape
    groups = convolution.groups
    view = (groups, inputs // groups, outputs, *kernel)
    kept = [n for n, size in enumerate(view) if size > 1]
    axes = tuple(kept.index(n) for n in (0, 2, 1, *range(3, len(view))) if n in kept)
    return Layout(tuple(view[n] for n in kept), axes, (groups * outputs, inputs // groups, *kernel))


KINDS: tuple[LayerKind, ...] = (
    LayerKind(classes=(nn.Linear,), kind=Kind.LINEAR, integers=lambda _: _LINEAR, rounded=True),
    LayerKind(
        classes=(_ConvTransposeNd,), kind=Kind.CONV, layout=_transposed, rounded=True,
        integers=lambda layer: _TRANSPOSED if cast("nn.ConvTranspose2d", layer).groups == 1 else {},
    ),
    LayerKind(classes=(_ConvNd,), kind=Kind.CONV, integers=_convolution, rounded=True),
    LayerKind(
        classes=(nn.Embedding, nn.EmbeddingBag), kind=Kind.EMBEDDING, integers=lambda _: _EMBEDDING,
        padding=lambda layer: cast("nn.Embedding", layer).padding_idx,
    ),
    LayerKind(classes=(nn.RNNBase, nn.RNNCellBase), kind=Kind.LINEAR),
    LayerKind(classes=(_NormBase,), kind=Kind.OTHER, integers=lambda _: _NORM),
)  # fmt: skip
"""The first entry with a class of the layer holds. A layer of none is known by what its forward does with its weights."""

_UNKNOWN = LayerKind(classes=(nn.Module,), kind=Kind.OTHER)

LISTS = (nn.ParameterList, nn.ParameterDict)
"""Containers whose parameters are stored, but left as they are."""


def kind_of(layer: nn.Module) -> LayerKind:
    """The entry of a layer.

    >>> kind_of(nn.LSTM(4, 4)).kind
    <Kind.LINEAR: 'linear'>
    """
    return next((entry for entry in KINDS if isinstance(layer, entry.classes)), _UNKNOWN)


def shrunk(layer: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The integer attributes of ``layer`` once its tensors, by name, have these shapes; only those that change.

    Raises ValueError, with the reason, when a tensor would grow, or shrink along an axis that must stay, or when two tensors
    disagree.

    >>> shrunk(nn.Linear(8, 4), {"weight": (3, 8), "bias": (3,)})
    {'out_features': 3}
    """
    before_by_name = {name: tuple(cast("Tensor", getattr(layer, name)).shape) for name in shapes}
    if before_by_name == dict(shapes):
        return {}
    measured, found = kind_of(layer).integers(layer), dict[str, int]()
    for name, shape in shapes.items():
        old = before_by_name[name]
        axes = measured.get(name, ())
        if len(shape) != len(old):
            raise ValueError(f"{name} has shape {shape}, but the model has {old}")
        for axis, (now, before) in enumerate(zip(shape, old, strict=True)):
            attribute = axes[axis] if axis < len(axes) else None
            if now != before and (attribute is None or not 1 <= now < before):
                raise ValueError(f"{name} has shape {shape}, but the model has {old}")
            if attribute is not None and found.setdefault(attribute, now) != now:
                raise ValueError(f"{name} has shape {shape}, which does not fit {attribute} = {found[attribute]}")
    if measured is _GROUPED:
        convolution = cast("nn.Conv2d", layer)
        each = convolution.out_channels // convolution.groups  # output channels of one input channel
        if found["out_channels"] % each:
            raise ValueError(f"{found['out_channels']} output channels are no multiple of {each} for each input channel")
        found["in_channels"] = found["groups"] = found["out_channels"] // each
    return {name: value for name, value in found.items() if value != cast("int", getattr(layer, name))}


def resize(layer: nn.Module, sizes: Mapping[str, int]) -> None:
    """Set these integer attributes of a layer that lost channels, and let it remember what they were at first."""
    full = full_sizes(layer)
    for attribute, size in sizes.items():
        full.setdefault(attribute, cast("int", getattr(layer, attribute)))
        setattr(layer, attribute, size)
    if sizes:
        setattr(layer, FULL, full)


def full_sizes(layer: nn.Module) -> dict[str, int]:
    """The integer attributes that a layer had before it lost channels; empty if it lost none."""
    return dict(cast("Mapping[str, int]", layer.__dict__.get(FULL, {})))
