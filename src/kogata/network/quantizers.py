"""Activation quantizers: what flows into a layer is rounded, in training, in the file and in every engine.

A quantizer sits on a module as its child ``input_quantizer`` and is called by a hook, so it is copied, moved, trained, saved
and exported with the model. It is no form, for it does not regenerate a weight.

Uniform quantization to b bits, with straight-through gradients (Jacob et al. 2018, 1712.05877, equation 1):
    q(x) = s · (clamp(round(x / s) + z, 0, 2^b − 1) − z).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any, ClassVar, Self, cast, final

import torch
from torch import Tensor, nn

from kogata.errors import UsageError
from kogata.forms.latent import straight_through
from kogata.job import Site
from kogata.network.layers import kind_of

CHILD = "input_quantizer"
MAX_BITS = 16


class Quantizer(nn.Module, ABC):
    """Rounds a tensor; the result has its shape and dtype."""

    TAG: ClassVar[str]  # names the quantizer in files: never changed once released
    INSTEAD: ClassVar[bool] = False  # it takes the place of the module it sits on, rather than rounding its input

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The rounded tensor, with a straight-through gradient."""

    @abstractmethod
    def header(self) -> dict[str, Any]:
        """The JSON values which, with the parameters, rebuild it."""

    @classmethod
    @abstractmethod
    def restore(cls, header: Mapping[str, Any]) -> Self:
        """Rebuild it, without the values of its parameters. Raises ValueError or KeyError on values out of range."""


class Static(Quantizer):
    """Per tensor, with a ``scale`` (parameter, ``[1]``) that was learnt or calibrated, and a fixed integer zero point."""

    TAG = "static"

    scale: nn.Parameter

    def __init__(self, scale: Tensor, *, bits: int, zero: int) -> None:
        super().__init__()
        _check(bits, zero)
        self.bits, self.zero = bits, zero
        self.scale = nn.Parameter(scale.detach().reshape(1))

    def forward(self, x: Tensor) -> Tensor:
        """Round to the grid of ``scale``; the gradient of the scale is that of LSQ without its factor."""
        clamped = (x / self.scale).clamp(-self.zero, 2**self.bits - 1 - self.zero)  # in the wider of the two dtypes
        return (straight_through(clamped.round(), clamped) * self.scale).to(x.dtype)

    def header(self) -> dict[str, Any]:
        """Bits and zero point."""
        return {"bits": self.bits, "zero": self.zero}

    @classmethod
    def restore(cls, header: Mapping[str, Any]) -> Self:
        """Rebuild it with a scale of one."""
        return cls(torch.ones(1), bits=header["bits"], zero=header["zero"])


class Granularity(StrEnum):
    """What shares one scale."""

    TENSOR = "tensor"
    TOKEN = "token"  # a row of the last axis


class Dynamic(Quantizer):
    """Asymmetric, with the scale and zero point of the values at hand: of the whole tensor, or of each token."""

    TAG = "dynamic"

    def __init__(self, *, bits: int, granularity: Granularity) -> None:
        super().__init__()
        _check(bits, 0)
        self.bits, self.granularity = bits, granularity

    def forward(self, x: Tensor) -> Tensor:
        """Round between the smallest and the largest value, zero included, so that zero stays exact."""
        axes = list(range(x.ndim)) if self.granularity is Granularity.TENSOR else [x.ndim - 1]
        values = x.detach().float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()
        low, high = values.amin(axes, keepdim=True).clamp(max=0), values.amax(axes, keepdim=True).clamp(min=0)
        levels = 2**self.bits - 1
        scale = ((high - low) / levels).clamp_min(torch.finfo(values.dtype).tiny)
        zero = (-low / scale).round()
        rounded = ((values / scale).round() + zero).clamp(0, levels) - zero
        return straight_through((rounded * scale).to(x.dtype), x)

    def header(self) -> dict[str, Any]:
        """Bits and granularity."""
        return {"bits": self.bits, "granularity": str(self.granularity)}

    @classmethod
    def restore(cls, header: Mapping[str, Any]) -> Self:
        """Rebuild it."""
        return cls(bits=header["bits"], granularity=Granularity(header["granularity"]))


class Sign(Quantizer):
    """±1 in the place of an activation function; the gradient passes where |x| ≤ 1 (Courbariaux et al. 2016, 1602.02830)."""

    TAG = "sign"
    INSTEAD = True

    def forward(self, x: Tensor) -> Tensor:
        """The sign, zero counting as positive."""
        return straight_through(torch.where(x >= 0, 1.0, -1.0).to(x.dtype), x.clamp(-1, 1))

    def header(self) -> dict[str, Any]:
        """Nothing: it has no settings."""
        return {}

    @classmethod
    def restore(cls, header: Mapping[str, Any]) -> Self:
        """Rebuild it."""
        return cls()


class LatentQuantizer(Quantizer):
    """A quantizer in training. It cannot be saved; what it freezes to can."""

    TAG = "latent"

    @abstractmethod
    def freeze(self) -> Quantizer:
        """What is to be stored and run instead."""

    def step(self) -> None:
        """Called after each step of the optimizer."""

    @final
    def header(self) -> dict[str, Any]:
        """Raises UsageError: training must be finished first."""
        raise UsageError(f"{type(self).__name__}: this model is still in training; call finish() on it before saving it.")

    @classmethod
    @final
    def restore(cls, header: Mapping[str, Any]) -> Self:
        """Raises ValueError: no file holds one."""
        raise ValueError("a quantizer in training is never stored")


QUANTIZERS: tuple[type[Quantizer], ...] = (Static, Dynamic, Sign)


def attach_quantizer(module: nn.Module, quantizer: Quantizer) -> None:
    """Let ``quantizer`` round the first input of ``module``, or stand in its place; one that is there already gives way."""
    if quantizer_of(module) is None:
        if quantizer.INSTEAD:
            if isinstance(module, nn.ReLU | nn.ReLU6 | nn.Hardtanh):
                module.inplace = False  # the quantizer is to see the input as it came
            module.register_forward_hook(_stand_in)
        else:
            module.register_forward_pre_hook(_round_input, with_kwargs=True)
    setattr(module, CHILD, quantizer)


def layer_of(model: nn.Module, site: Site) -> nn.Module | None:
    """The linear or convolutional layer whose input the site's weight multiplies; None when there is no such layer."""
    layer = model.get_submodule(site.module)
    return layer if site.parameter == "weight" and kind_of(layer).rounded and not _by_heads(model, site) else None


def _by_heads(model: nn.Module, site: Site) -> bool:
    """Whether an attention reads the layer's weight without calling it."""
    owner, _, name = site.module.rpartition(".")
    return name == "out_proj" and isinstance(model.get_submodule(owner), nn.MultiheadAttention)


def layers_of(model: nn.Module, sites: Iterable[Site]) -> list[nn.Module]:
    """Those of several sites, each once."""
    found = (layer_of(model, site) for site in sites)
    return list(dict.fromkeys(layer for layer in found if layer is not None))


def quantizer_of(module: nn.Module) -> Quantizer | None:
    """The quantizer that sits on a module."""
    child = dict(module.named_children()).get(CHILD)
    return child if isinstance(child, Quantizer) else None


def quantizers_of(model: nn.Module) -> Iterator[tuple[str, Quantizer]]:
    """Every quantizer of a model, with the path of the module it sits on."""
    for path, module in model.named_modules():
        if (found := quantizer_of(module)) is not None:
            yield path, found


def _round_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    quantizer = cast("Quantizer", module.get_submodule(CHILD))
    if args:
        return (quantizer(args[0]), *args[1:]), kwargs
    return args, kwargs | {"input": quantizer(kwargs["input"])}


def _stand_in(module: nn.Module, args: tuple[Any, ...], _: object) -> Tensor:
    return cast("Quantizer", module.get_submodule(CHILD))(args[0])


def _check(bits: int, zero: int) -> None:
    if not (1 <= bits <= MAX_BITS and 0 <= zero < 2**bits):
        raise UsageError(
            f"activations: {bits} bits with zero point {zero}; expected 1 to {MAX_BITS} bits, the zero point within."
        )
