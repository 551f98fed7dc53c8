"""Batch normalization behind layers that are being compressed: its running statistics follow what the layers have become.

Frantar, Alistarh, "Optimal Brain Compression", 2022 (2208.11580) resets them once at the end. Here they are shifted on the way
through the net, so that each layer is compressed for the inputs that it will really get, and only by the difference that the
compression makes: the mean by that of the means of the calibration data, the variance by the quotient of its variances, after
and before. So the errors of few calibration data, and their difference from the training data, do not enter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
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

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel, ``[C]``, float64."""
        mean_C = self.sum_C / self.rows
        return mean_C, (self.square_C - self.rows * mean_C.square()).clamp_min(0) / (self.rows - 1)

    def shift(self, layer: nn.Module, before: Moments) -> None:
        """Let the running statistics follow from ``before`` to here, in new buffers: other copies share the old ones."""
        if self.rows < ENOUGH or before.rows != self.rows:
            return
        (mean_C, variance_C), (old_mean_C, old_variance_C) = self.moments(), before.moments()
        quotient_C = (variance_C / old_variance_C).where(old_variance_C > 0, 1.0)
        running_C, spread_C = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
        layer.running_mean = _as_exact(running_C.double() + mean_C - old_mean_C, running_C)
        layer.running_var = _as_exact(spread_C.double() * quotient_C, spread_C)


def _as_exact(values_C: Tensor, old_C: Tensor) -> Tensor:
    """The values in the dtype of the old ones; rounded to half precision where those have it, and so take half the bytes."""
    half_C = values_C.half().to(old_C)
    exact = torch.equal(old_C.half().to(old_C), old_C) and bool(
        half_C.isfinite().all() and (half_C != 0).eq(values_C != 0).all()
    )
    return half_C if exact else values_C.to(old_C)


def unchanged(model: nn.Module, names: Collection[str], forwards: Iterable[Callable[[], object]]) -> dict[str, Moments]:
    """The moments of the inputs of the layers ``names`` of ``model``, over all ``forwards`` of it."""
    found = {name: Moments() for name in names}

    def hook(moments: Moments) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        return lambda layer, args, kwargs: moments(layer, args, kwargs)

    with ExitStack() as stack:
        for name, moments in found.items():
            layer = model.get_submodule(name)
            stack.callback(layer.register_forward_pre_hook(hook(moments), with_kwargs=True).remove)
        for forward in forwards if found else ():
            forward()
    return found
