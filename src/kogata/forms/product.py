"""Product: a weight is a sum of products of smaller factors, W = einsum(equation, *factors)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from string import ascii_lowercase, ascii_uppercase
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from kogata.coding.plane import Plane
from kogata.forms import structured_layers as fast
from kogata.forms.base import Dense, Form
from kogata.forms.layers import Stage, convolutions, kind_of, linears, table
from kogata.forms.stacked import Stacked
from kogata.job import Role

_EQUATION = re.compile(r"[a-zA-Z]+(,[a-zA-Z]+)*->[a-zA-Z]+")
MAX_ENTRIES = 1 << 31  # of the whole weight: a few bytes of factors in a damaged file must not reserve more

# The products that have cheaper plain layers. The factor that the inputs meet first stands last.
PAIR = "or,ri->oi"  # two matrices
SEPARABLE = "orw,rih->oihw"  # a filter down the image, then one across it
TUCKER = "os,srk,ri->oik"  # fewer channels, the flattened kernel between these, more channels
SHORT = 3  # places of a kernel up to which one filter along each axis of the image is as fast as a square one for each channel
CP = {1: "or,rh,ri->oih", 2: "or,rw,rh,ri->oihw"}  # by the axes of the image: one filter along each, channel by channel
DEPTHWISE = "oim,imk->oik"  # m flattened filters on each input channel, then a mixing of what they give
SQUEEZED = {1: "osx,si->oix", 2: "osyx,si->oiyx"}  # by the axes of the image: fewer channels, then filters on these
MONARCH = "jlkr,kjri->ljki"  # inputs in k blocks, each to r numbers for each of j blocks of outputs
KRONECKER = "arc,rbd->abcd"  # a sum of r Kronecker products


def butterfly(count: int) -> str:
    """Digit s of the inputs gives way to digit s of the outputs in factor s: ``[outputs up to s, inputs from s on]``.

    Digits are numbered from the fastest on. No index is summed over: each entry of the matrix is a product of one entry each.

    >>> butterfly(3)
    'Aabc,ABbc,ABCc->CBAcba'
    """
    rows, columns = ascii_uppercase[:count], ascii_lowercase[:count]
    return f"{','.join(rows[: s + 1] + columns[s:] for s in range(count))}->{rows[::-1]}{columns[::-1]}"


def butterfly_halves(count: int) -> tuple[str, str]:
    """The first and the second half of the factors multiplied out: the right and the left factor of a Monarch matrix.

    >>> butterfly_halves(3)
    ('Aabc->cbAa', 'ABbc,ABCc->ACBcb')
    """
    factors, half = butterfly(count).split("->")[0].split(","), count // 2
    rows, columns = ascii_uppercase[:count], ascii_lowercase[:count]
    later, early = slice(count, half - 1 if half else None, -1), slice(half - 1, None, -1)
    right = f"{','.join(factors[:half])}->{columns[later]}{rows[early]}{columns[early]}"
    return right, f"{','.join(factors[half:])}->{rows[early]}{rows[later]}{columns[later]}"


class Product(Form):
    """``einsum(equation, *factors)`` reshaped to ``shape``. A rank-r matrix is ``PAIR`` over ``[o, r]`` and ``[r, i]``."""

    TAG = "product"

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
        """A few plain layers in a row, when they cost less than the dense layer; None otherwise.

        A linear layer becomes two; an embedding an embedding and a linear layer; a convolution one convolution for each factor,
        unless these would read and write more numbers than the multiplications that they save are worth.
        Other layers read their weight in ways that these cannot replace.
        """
        factors = [cast("Form", factor).dense().detach() for factor in self.factors]
        kind = kind_of(layer)
        if isinstance(layer, nn.Linear) and fast.lowers(layer, fast.SMALLEST) and self.equation != PAIR:
            return _structured(self.equation, factors, layer)
        if kind is nn.Linear or kind is nn.Embedding:
            if self.equation != PAIR or sum(factor.numel() for factor in factors) >= self.shape.numel():
                return None
            left_OR, right_RI = factors
            if kind is nn.Embedding:
                return table(cast("nn.Embedding", layer), left_OR, right_RI)
            return linears(cast("nn.Linear", layer), left_OR, right_RI)
        expand = self.factors[0]
        if self.equation in SQUEEZED.values():
            if not isinstance(expand, Stacked) or expand.shape[2:] != self.shape[2:]:
                return None
            return expand.behind(layer, factors[1])
        stages = _stages(self.equation, factors, self.shape[2:])
        return None if stages is None else convolutions(layer, stages)


def _structured(equation: str, factors: Sequence[Tensor], layer: nn.Linear) -> nn.Module | None:
    """Batched products with the factors of a structured matrix; None where they do not pay."""
    if equation == butterfly(len(factors)) and len(factors) > 1:
        made = fast.ButterflyLinear(layer, factors, butterfly_halves(len(factors)))
        return made if fast.fewer(made.left.numel() + made.right.numel(), layer) else None
    if equation == MONARCH and fast.fewer(sum(factor.numel() for factor in factors), layer):
        return fast.MonarchLinear(layer, *factors)
    if equation == KRONECKER:
        (high, ranks, wide), (_, *low) = (factor.shape for factor in factors)
        if fast.fewer(ranks * (wide * math.prod(low) + high * wide * low[0]), layer):
            return fast.KroneckerLinear(layer, *factors)
    return None


def _stages(equation: str, factors: Sequence[Tensor], kernel: Sequence[int]) -> list[Stage] | None:
    """The convolutions, in their order, that factors of ``[outputs, inputs, *kernel]`` stand for; None if there are none."""
    every = tuple(range(len(kernel)))

    def point(weight_OI: Tensor) -> Stage:
        return Stage(weight_OI.reshape(*weight_OI.shape, *(1 for _ in kernel)))

    def line(weight: Tensor, axis: int) -> Stage:
        extent = [weight.shape[-1] if other == axis else 1 for other in every]
        channelwise = weight.ndim == 2
        inputs = 1 if channelwise else weight.shape[1]
        return Stage(weight.reshape(len(weight), inputs, *extent), (axis,), len(weight) if channelwise else 1)

    if equation == PAIR:
        left_OR, right_RI = factors
        return [Stage(right_RI.reshape(len(right_RI), -1, *kernel), every), point(left_OR)]
    if equation == SEPARABLE and list(kernel) == [factor.shape[2] for factor in reversed(factors)]:
        across_ORW, down_RIH = factors
        return [line(down_RIH, 0), line(across_ORW, 1)]
    if equation == TUCKER:
        left_OS, core_SRK, right_RI = factors
        return [point(right_RI), Stage(core_SRK.reshape(*core_SRK.shape[:2], *kernel), every), point(left_OS)]
    if equation == DEPTHWISE:
        mix_OIM, filters_IMK = factors
        inputs, count, _ = filters_IMK.shape
        return [Stage(filters_IMK.reshape(inputs * count, 1, *kernel), every, inputs), point(mix_OIM.flatten(1))]
    if equation == CP.get(len(kernel)) and list(kernel) == [factor.shape[1] for factor in reversed(factors[1:-1])]:
        left_OR, *lines, right_RI = factors
        middle = [line(weight, axis) for axis, weight in enumerate(reversed(lines))]
        if len(kernel) == 2 and min(kernel) > SHORT:
            middle = [Stage(torch.einsum("rw,rh->rhw", *lines)[:, None], every, len(left_OR.T))]
        return [point(right_RI), *middle, point(left_OR)]
    return None
