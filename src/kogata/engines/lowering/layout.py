"""One memory layout for models that are timed beside each other in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kogata.network import surgery


def channels_last(model: nn.Module) -> nn.Module:
    """A copy of a model without forms whose 4-d tensors are in the channels-last layout; it shares all others with ``model``.

    The weights that forms compute have this layout, in which convolutions on the CPU are faster. A dense model left in another
    one would lose to its own copy, rounded to 8 bits and computed in the same arithmetic.

    >>> dense = nn.Conv2d(8, 8, 3)
    >>> channels_last(dense).weight.is_contiguous(memory_format=torch.channels_last), dense.weight.is_contiguous()
    (True, True)
    """
    copied = surgery.clone(model)
    moved: dict[int, Tensor] = {}  # a tensor that two modules share stays one tensor
    for module in copied.modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if tensor.ndim == 4:
                setattr(module, name, moved.setdefault(id(tensor), _converted(tensor)))
    return copied


def _converted(tensor: Tensor) -> Tensor:
    # `contiguous` keeps the strides of a kernel of one input channel, which fit both layouts; a convolution tells them apart.
    values = torch.empty_like(tensor, requires_grad=False, memory_format=torch.channels_last).copy_(tensor.detach())
    return nn.Parameter(values, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values
