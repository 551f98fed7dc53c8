"""Ordinary PyTorch layers equal to a layer with a weight that is a product of factors or stacked from parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


@dataclass(frozen=True)
class Stage:
    """One convolution of a chain, with a weight ``[outputs, inputs / groups, *kernel]``.

    ``axes`` are the spatial axes along which its kernel is larger than 1. Along these it has the padding, stride and dilation
    of the replaced layer.
    """

    weight: Tensor
    axes: tuple[int, ...] = ()
    groups: int = 1


def kind_of(layer: nn.Module) -> type[nn.Module]:
    """The class of the layer before a form was attached.

    Rules compare it exactly, as subclasses may use the weight otherwise.
    """
    return parametrize.type_before_parametrizations(layer)


def linears(layer: nn.Linear, left_OR: Tensor, right_RI: Tensor) -> nn.Sequential:
    """Two linear layers for the weight ``left @ right``: from the inputs to r features, and from these to the outputs."""
    return nn.Sequential(_linear(right_RI, None), _linear(left_OR, cast("Tensor | None", layer.bias)))


def table(layer: nn.Embedding, left_OR: Tensor, right_RI: Tensor) -> nn.Sequential | None:
    """An embedding of r features, then a linear layer. None for an embedding with ``max_norm``, which rescales whole rows."""
    if layer.max_norm is not None:
        return None
    narrow = nn.Embedding.from_pretrained(left_OR.contiguous(), freeze=True, padding_idx=layer.padding_idx)
    return nn.Sequential(narrow, _linear(right_RI.T, None))


def convolutions(layer: nn.Module, stages: Sequence[Stage], move: int) -> nn.Sequential | None:
    """The stages in sequence, if they cost less than the layer; None otherwise, and for layers other than convolutions.

    ``move`` is the cost of moving one activation between two layers, in multiply-adds. Padding, stride and dilation along an
    axis belong to the stage with that axis. The groups of a grouped convolution share all stages but the last, so these stages
    run with the groups as part of the batch.
    """
    if kind_of(layer) not in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return None
    whole = cast("nn.Conv2d", layer)
    moved = whole.in_channels * math.prod(whole.stride) + whole.out_channels
    products = whole.in_channels // whole.groups * whole.out_channels * math.prod(whole.kernel_size)
    if _cost(whole, stages, move) >= products + move * moved:
        return None
    *shared, last = stages
    bias_O = whole.bias
    first = [_convolution(whole, stage, 1, None) for stage in shared]
    final = _convolution(whole, last, whole.groups, bias_O)
    if whole.groups == 1:
        return nn.Sequential(*first, final)
    split = (nn.Unflatten(1, (whole.groups, -1)), nn.Flatten(0, 1))
    join = (nn.Unflatten(0, (-1, whole.groups)), nn.Flatten(1, 2))
    return nn.Sequential(*split, *first, *join, final)


def _cost(layer: nn.Conv2d, stages: Sequence[Stage], move: int) -> int:
    """The multiply-adds of all stages per output position, plus ``move`` for each activation that they read or write.

    A stage before a strided stage runs at more positions than the output has.
    """
    total, places = 0, 1
    for number, stage in enumerate(reversed(stages)):
        outputs, reads, *_ = stage.weight.shape
        shared = layer.groups if number else 1
        total += places * shared * (stage.weight.numel() + move * outputs)
        places *= math.prod(layer.stride[axis] for axis in stage.axes)
        total += places * move * reads * stage.groups * layer.groups
    return total


def stack(layer: nn.Module, parts: Sequence[Tensor], order_O: Tensor, squeeze_SI: Tensor | None) -> nn.Module | None:
    """One convolution for each part, in parallel, if together they need fewer multiply-adds than the layer.

    A part is a set of filters ``[outputs, S, *kernel]``; all kernels share their centre. Output o of the layer is output
    ``order_O[o]`` of the concatenated parts. With ``squeeze_SI``, the parts read the outputs of a 1×1 convolution with this
    weight. None where nothing is saved, for grouped convolutions, and for other layers.
    """
    if kind_of(layer) not in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return None
    whole = cast("nn.Conv2d", layer)
    products = sum(part.numel() for part in parts)
    if squeeze_SI is not None:
        products += squeeze_SI.numel() * math.prod(whole.stride)  # it runs before the stride, at every position of the image
    if whole.groups > 1 or products >= whole.in_channels * whole.out_channels * math.prod(whole.kernel_size):
        return None
    sources = torch.argsort(order_O).split([len(part) for part in parts])
    biases = [None if whole.bias is None else whole.bias[source_P] for source_P in sources]
    made = Stack(
        [_branch(whole, part, bias) for part, bias in zip(parts, biases, strict=True)], order_O, len(whole.kernel_size)
    )
    if squeeze_SI is None:
        return made
    point = Stage(squeeze_SI.reshape(*squeeze_SI.shape, *(1 for _ in whole.kernel_size)))
    return nn.Sequential(_convolution(whole, point, 1, None), made)


class Stack(nn.Module):
    """Concatenates the channels of several branches and reorders them by ``order_O``. Images have ``axes`` spatial axes."""

    order: Tensor

    def __init__(self, branches: Sequence[nn.Module], order_O: Tensor, axes: int) -> None:
        super().__init__()
        self.branches, self.axis = nn.ModuleList(branches), -1 - axes
        self.register_buffer("order", order_O)

    def forward(self, input: Tensor) -> Tensor:
        """Map images ``[..., inputs, *positions]`` to ``[..., outputs, *positions]``."""
        return torch.cat([branch(input) for branch in self.branches], self.axis).index_select(self.axis, self.order)


def _branch(layer: nn.Conv2d, weight: Tensor, bias_O: Tensor | None) -> nn.Module:
    """A convolution with a smaller kernel and the same centre: it has less padding or, if there is none, crops its input."""
    spare = [
        (whole - own) // 2 * step for whole, own, step in zip(layer.kernel_size, weight.shape[2:], layer.dilation, strict=True)
    ]
    if layer.padding == "same":
        return convolution_like(layer, weight, layer.stride, layer.dilation, "same", 1, bias_O)
    padding = (0,) * len(spare) if isinstance(layer.padding, str) else layer.padding
    left = [pad - less for pad, less in zip(padding, spare, strict=True)]
    made = convolution_like(layer, weight, layer.stride, layer.dilation, tuple(max(pad, 0) for pad in left), 1, bias_O)
    if min(left) >= 0:
        return made
    crop = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)[len(left) - 1]
    return nn.Sequential(cast("Any", crop)(tuple(min(pad, 0) for pad in reversed(left) for _ in range(2)), 0.0), made)


def _convolution(layer: nn.Conv2d, stage: Stage, groups: int, bias_O: Tensor | None) -> nn.Module:
    """One stage as a convolution, with the padding, stride and dilation of ``layer`` along the axes of the stage."""

    def along(values: tuple[int, ...], default: int) -> tuple[int, ...]:
        return tuple(value if axis in stage.axes else default for axis, value in enumerate(values))

    padding = layer.padding  # "same" and "valid" add no padding along axes where the kernel is 1
    padding = padding if isinstance(padding, str) else along(padding, 0)
    return convolution_like(
        layer, stage.weight, along(layer.stride, 1), along(layer.dilation, 1), padding, stage.groups * groups, bias_O
    )


def convolution_like(
    layer: nn.Conv2d, weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...], padding: str | tuple[int, ...],
    groups: int, bias_O: Tensor | None,
) -> nn.Module:  # fmt: skip
    """A convolution of the class and padding mode of ``layer``, with a fixed ``weight`` ``[outputs, inputs, *kernel]``."""
    outputs, inputs, *kernel = weight.shape
    made = cast("Any", kind_of(layer))(
        inputs * groups, outputs, tuple(kernel), stride=stride, dilation=dilation, padding=padding, groups=groups,
        bias=bias_O is not None, padding_mode=layer.padding_mode, device="meta", dtype=weight.dtype,
    )  # fmt: skip
    return _filled(made, weight, bias_O)


def _linear(weight_OI: Tensor, bias_O: Tensor | None) -> nn.Module:
    outputs, inputs = weight_OI.shape
    return _filled(nn.Linear(inputs, outputs, bias=bias_O is not None, device="meta", dtype=weight_OI.dtype), weight_OI, bias_O)


def _filled(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Set weight and bias of a layer that was made on the meta device, which allocates and initializes nothing."""
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer
