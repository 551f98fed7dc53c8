"""Product: a weight is a sum of products of smaller factors, W = einsum(equation, *factors)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kogata.coding.plane import Plane
from kogata.forms.base import Dense, Form, Role

_EQUATION = re.compile(r"[a-zA-Z]+(,[a-zA-Z]+)*->[a-zA-Z]+")
MAX_ENTRIES = 1 << 31  # of the whole weight: a few bytes of factors in a damaged file must not reserve more
PAIR = "or,ri->oi"  # two matrices: the one product of two factors that has cheaper plain layers


class Product(Form):
    """``einsum(equation, *factors)`` reshaped to ``shape``. A rank-r matrix is ``PAIR`` over ``[o, r]`` and ``[r, i]``."""

    factors: nn.ModuleList

    def __init__(self, equation: str, factors: Sequence[Form], shape: Sequence[int]) -> None:
        super().__init__()
        self.equation, self.shape = equation, torch.Size(shape)
        self.factors = nn.ModuleList(factors)

    @classmethod
    def of(cls, equation: str, factors: Sequence[Tensor], shape: Sequence[int]) -> Self:
        """Trainable dense factors."""
        return cls(equation, [Dense(factor.contiguous(), Role.MATRIX) for factor in factors], shape)

    def dense(self) -> Tensor:
        """The product, of ``shape``."""
        factors = [cast("Form", factor).dense() for factor in self.factors]
        return torch.einsum(self.equation, *factors).reshape(self.shape)

    def kept(self) -> int:
        """The entries of all factors."""
        return sum(factor.kept() for factor in self.parts().values())

    def planes(self) -> dict[str, Plane]:
        """Nothing of its own: the factors store themselves."""
        return {}

    def header(self) -> dict[str, Any]:
        """Equation and shape."""
        return {"equation": self.equation, "shape": list(self.shape)}

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild; raises ValueError when the equation, the factors and the shape do not fit."""
        equation, shape, factors = header["equation"], header["shape"], list(parts.values())
        if not (isinstance(equation, str) and _EQUATION.fullmatch(equation)):
            raise ValueError(f"equation {equation!r}")
        inputs, output = equation.split("->")
        sizes: dict[str, int] = {}
        for letters, factor in zip(inputs.split(","), factors, strict=True):
            for letter, size in zip(letters, factor.shape, strict=True):
                if sizes.setdefault(letter, size) != size:
                    raise ValueError(f"factors {[tuple(f.shape) for f in factors]} do not fit {equation!r}")
        found = [sizes[letter] for letter in output]
        if len(set(output)) < len(output) or min(shape) < 1 or not math.prod(found) == math.prod(shape) <= MAX_ENTRIES:
            raise ValueError(f"{equation!r} gives {found}, expected {shape} of at most {MAX_ENTRIES} entries")
        return cls(equation, factors, shape)

    def lower(self, layer: nn.Module) -> nn.Module | None:
        """Two plain layers through r channels, when they hold fewer weights than the dense layer; None otherwise.

        A linear layer becomes two; an embedding an embedding and a linear layer; a convolution the same convolution with r
        outputs, then a 1×1 one. Other layers read their weight in ways that two layers cannot replace.
        """
        if self.equation != PAIR:
            return None
        left_OR, right_RI = (cast("Form", factor).dense().detach() for factor in self.factors)
        if left_OR.numel() + right_RI.numel() >= self.shape.numel():
            return None
        kind = parametrize.type_before_parametrizations(layer)  # a subclass may read its weight in other ways
        if kind is nn.Linear:
            return nn.Sequential(_linear(right_RI, None), _linear(left_OR, cast("Tensor | None", layer.bias)))
        if kind is nn.Embedding and cast("float | None", layer.max_norm) is None:
            padding = cast("int | None", layer.padding_idx)
            table = nn.Embedding.from_pretrained(left_OR.contiguous(), freeze=True, padding_idx=padding)
            return nn.Sequential(table, _linear(right_RI.T, None))
        if kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and layer.groups == 1:
            return _convolutions(cast("nn.Conv2d", layer), left_OR, right_RI)
        return None


def _convolutions(layer: nn.Conv2d, left_OR: Tensor, right_RI: Tensor) -> nn.Module:
    """The convolution with r outputs instead of its own, then a 1×1 convolution from r to its outputs."""
    rank, spatial = right_RI.shape[0], layer.kernel_size
    convolution, bias_O = parametrize.type_before_parametrizations(layer), layer.bias
    first = convolution(
        layer.in_channels, rank, spatial, stride=layer.stride, padding=layer.padding, dilation=layer.dilation,
        bias=False, padding_mode=layer.padding_mode, dtype=right_RI.dtype,
    )  # fmt: skip
    second = convolution(rank, layer.out_channels, 1, bias=bias_O is not None, dtype=left_OR.dtype)
    first.weight = nn.Parameter(right_RI.reshape(rank, -1, *spatial), requires_grad=False)
    second.weight = nn.Parameter(left_OR.reshape(*left_OR.shape, *[1] * len(spatial)), requires_grad=False)
    if bias_O is not None:
        second.bias = nn.Parameter(bias_O.detach(), requires_grad=False)
    return nn.Sequential(first, second)


def _linear(weight_OI: Tensor, bias_O: Tensor | None) -> nn.Linear:
    outputs, inputs = weight_OI.shape
    # made on the meta device, so that no memory is filled with numbers that are not wanted
    layer = nn.Linear(inputs, outputs, bias=bias_O is not None, device="meta", dtype=weight_OI.dtype)
    layer.weight = nn.Parameter(weight_OI.contiguous(), requires_grad=False)
    if bias_O is not None:
        layer.bias = nn.Parameter(bias_O.detach(), requires_grad=False)
    return layer
