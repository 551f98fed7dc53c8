"""Low-rank networks to be trained from scratch, with batch normalization between the factors of each convolution.

Tai, Xiao, Wang, E, "Convolutional neural networks with low-rank regularization", ICLR 2016 (1511.06067), section 3.2: a d × d
convolution becomes K filters d × 1, a batch normalization, and 1 × d filters from these K channels to the outputs. Without this
normalization the gradients of the two factors explode or vanish and training fails.

The result is plain PyTorch and can be trained with any loop. The same call builds the same modules again, and a file of the
trained network can be loaded into them.
"""

from __future__ import annotations

import logging
from typing import cast

from torch import nn

from kogata.errors import NotApplicable
from kogata.methods.base.guards import Rank
from kogata.methods.kernels.svd import rank_of
from kogata.network import surgery
from kogata.settings import check_value

log = logging.getLogger("kogata")

Pair = tuple[int, int]


def separable_network(model: nn.Module, rank: float) -> nn.Module:
    """Copy ``model`` with each 2-d convolution replaced by a column convolution, a batch normalization and a row convolution.

    The column (d × 1) takes over the vertical stride, padding and dilation, the row (1 × d) the horizontal ones, so all output
    shapes stay the same. The factors have new random weights; other layers keep those of ``model``. Convolutions that cannot be
    factorized are kept, and the reason is logged.

    >>> net = separable_network(nn.Sequential(nn.Conv2d(8, 16, 3, padding=1)), rank=6)
    >>> [tuple(layer.weight.shape) for layer in net[0]]
    [(6, 8, 3, 1), (6,), (16, 6, 1, 3)]

    :param rank: number of channels between the factors: a count, or a fraction of the full rank, which is the smaller of
        input channels · kernel height and output channels · kernel width.
    :raises UsageError: ``rank`` is not a valid rank.
    :raises NotApplicable: no convolution can be factorized.
    """
    check_value("separable network", "rank", rank, Rank)
    twin, parted = surgery.clone(model, share=False), dict[nn.Module, nn.Module]()
    for path, module in list(twin.named_modules(remove_duplicate=False)):
        if not isinstance(module, nn.Conv2d):
            continue
        if module not in parted:
            if reason := _obstacle(module, rank):
                log.info("%s stays as it is: %s", path, reason)
                continue
            parted[module] = _parted(module, _channels(module, rank))
        owner, _, name = path.rpartition(".")
        if path:
            setattr(twin.get_submodule(owner), name, parted[module])
    if not parted:
        raise NotApplicable("separable network: no convolution of this model can be factorized into a column and a row.")
    return parted.get(twin, twin)


def _obstacle(layer: nn.Conv2d, rank: float) -> str:
    """Why a convolution cannot be factorized; empty when it can."""
    if type(layer) is not nn.Conv2d:
        return f"{type(layer).__name__} may have a forward of its own"
    if layer.groups > 1:
        return f"it has {layer.groups} groups"
    if min(layer.kernel_size) == 1:
        return f"its kernel {layer.kernel_size} has an extent along one axis at most, so there is nothing to separate"
    held = _channels(layer, rank) * (layer.in_channels * layer.kernel_size[0] + layer.out_channels * layer.kernel_size[1])
    if held >= layer.weight.numel():
        return f"its factors would hold {held} numbers, no fewer than the {layer.weight.numel()} it has"
    return ""


def _channels(layer: nn.Conv2d, rank: float) -> int:
    height, width = layer.kernel_size
    return rank_of(rank, min(layer.in_channels * height, layer.out_channels * width))


def _parted(layer: nn.Conv2d, channels: int) -> nn.Sequential:
    """The column (its bias would duplicate the normalization's), the normalization, and the row."""
    (height, width), stride, dilation = layer.kernel_size, cast("Pair", layer.stride), cast("Pair", layer.dilation)
    down, across = _paddings(layer)
    mode, device, dtype = layer.padding_mode, layer.weight.device, layer.weight.dtype
    column = nn.Conv2d(
        layer.in_channels, channels, (height, 1), (stride[0], 1), down, (dilation[0], 1), 1, False, mode, device, dtype
    )
    row = nn.Conv2d(
        channels, layer.out_channels, (1, width), (1, stride[1]), across, (1, dilation[1]), 1, layer.bias is not None, mode,
        device, dtype,
    )  # fmt: skip
    return nn.Sequential(column, nn.BatchNorm2d(channels, device=device, dtype=dtype), row).train(layer.training)


def _paddings(layer: nn.Conv2d) -> tuple[Pair | str, Pair | str]:
    """The paddings of the column and of the row."""
    if isinstance(layer.padding, str):
        return layer.padding, layer.padding
    height, width = cast("Pair", layer.padding)
    return (height, 0), (0, width)
