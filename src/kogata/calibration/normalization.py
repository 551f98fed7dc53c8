"""Batch normalization behind layers that are being compressed: its running statistics follow what the layers have become.

Frantar, Alistarh, "Optimal Brain Compression", 2022 (2208.11580) resets them once at the end. Here they are renewed on the way
through the net, so that each layer is compressed for the inputs that it will really get.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ENOUGH = 1024  # values of a channel: fewer of them say less than the running statistics do


def follows(layer: nn.Module) -> bool:
    """Whether a layer normalizes by running statistics."""
    return isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None  # pyright: ignore[reportPrivateUsage] - the only common base


class Moments:
    """Running sums of the inputs ``[N, C, ...]`` of one such layer; a visit of :mod:`kogata.calibration.sequential`."""

    def __init__(self) -> None:
        self.rows, self.sum_C, self.square_C = 0, torch.zeros(()), torch.zeros(())

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Add the inputs of one call."""
        inputs: Tensor = args[0] if args else kwargs["input"]
        x_CN = inputs.double().transpose(0, 1).flatten(1)
        self.rows += x_CN.shape[1]
        self.sum_C = self.sum_C.to(x_CN) + x_CN.sum(1)
        self.square_C = self.square_C.to(x_CN) + x_CN.square().sum(1)

    def renew(self, layer: nn.Module) -> None:
        """Give the layer new buffers: other copies of the model share the old ones."""
        if self.rows < ENOUGH:
            return
        mean_C = self.sum_C / self.rows
        variance_C = (self.square_C - self.rows * mean_C.square()).clamp_min(0) / (self.rows - 1)
        for name, value in (("running_mean", mean_C), ("running_var", variance_C)):
            setattr(layer, name, value.to(layer.get_buffer(name)))
