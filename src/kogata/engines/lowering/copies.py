"""Lower a convolution with repeated filters to a smaller convolution followed by copies of its output channels."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from kogata.engines.lowering.layers import convolution_like, kind_of


class Copies(nn.Module):
    """Copies channels: output channel o is ``sign[o] · input[index[o]] + bias[o]``. Images have ``axes`` spatial axes."""

    index: Tensor
    sign: Tensor
    bias: Tensor

    def __init__(self, index_O: Tensor, sign_O: Tensor, bias_O: Tensor, axes: int) -> None:
        super().__init__()
        self.axis, ones = -1 - axes, (1,) * axes
        self.register_buffer("index", index_O)
        self.register_buffer("sign", sign_O.reshape(-1, *ones))
        self.register_buffer("bias", bias_O.reshape(-1, *ones))

    def forward(self, input: Tensor) -> Tensor:
        """Map images ``[..., inputs, *positions]`` to ``[..., outputs, *positions]``."""
        return input.index_select(self.axis, self.index) * self.sign + self.bias


def copied(layer: nn.Module, base: Tensor, index_O: Tensor, sign_O: Tensor) -> nn.Sequential | None:
    """Layers equal to ``layer`` with the weight ``sign[o] · base[index[o]]``; None unless it is an ungrouped convolution."""
    if kind_of(layer) not in (nn.Conv1d, nn.Conv2d, nn.Conv3d) or cast("nn.Conv2d", layer).groups > 1:
        return None
    whole = cast("nn.Conv2d", layer)
    few = convolution_like(whole, base.detach(), whole.stride, whole.dilation, whole.padding, 1, None)
    bias_O = base.new_zeros(len(index_O)) if whole.bias is None else whole.bias.detach()
    index_O, sign_O = (tensor.to(base.device) for tensor in (index_O, sign_O))
    return nn.Sequential(few, Copies(index_O, sign_O.to(base.dtype), bias_O, len(whole.kernel_size)))
