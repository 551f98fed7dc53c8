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

from kogata.coding.budget import Cost
from kogata.coding.plane import Plane, checked_shape
from kogata.forms.base import Dense, Form, width
from kogata.job import Role

_EQUATION = re.compile(r"[a-zA-Z]+(,[a-zA-Z]+)*->[a-zA-Z]+")
MAX_ENTRIES = 1 << 31  # largest number of entries of a weight that a file may ask for; guards against damaged files

# Equations of products that methods make. The factor that is applied to the inputs first stands last.
PAIR = "or,ri->oi"  # two matrices
SEPARABLE = "orw,rih->oihw"  # a vertical filter, then a horizontal one
TUCKER = "os,srk,ri->oik"  # 1×1 to fewer channels, the flattened kernel between them, 1×1 to all outputs
CP = {1: "or,rh,ri->oih", 2: "or,rw,rh,ri->oihw"}  # for 1-d and 2-d convolutions: a depthwise filter along each axis
DEPTHWISE = "oim,imk->oik"  # m flattened filters on each input channel, then a 1×1 convolution
SQUEEZED = {1: "osx,si->oix", 2: "osyx,si->oiyx"}  # for 1-d and 2-d convolutions: 1×1 to fewer channels, then filters
MONARCH = "jlkr,kjri->ljki"  # k blocks of inputs; each gives r numbers to each of j blocks of outputs
KRONECKER = "arc,rbd->abcd"  # a sum of r Kronecker products


def butterfly(count: int) -> str:
    """The equation of ``count`` butterfly factors. Factor s replaces digit s of the input index by digit s of the output index.

    Its axes are the output digits up to s and the input digits from s on, where digit 0 varies fastest. No index is summed
    over: each entry of the matrix is a product of one entry of each factor.

    >>> butterfly(3)
    'Aabc,ABbc,ABCc->CBAcba'
    """
    rows, columns = ascii_uppercase[:count], ascii_lowercase[:count]
    return f"{','.join(rows[: s + 1] + columns[s:] for s in range(count))}->{rows[::-1]}{columns[::-1]}"


class Product(Form):
    """``einsum(equation, *factors)``, reshaped to ``shape``. The factors are trainable.

    A matrix of rank r, for example, has the equation ``PAIR`` and factors ``[o, r]`` and ``[r, i]``.

    >>> import torch
    >>> from kogata.forms import Product
    >>> form = Product.of("or,ri->oi", [torch.randn(8, 2), torch.randn(2, 6)], (8, 6))
    >>> form.dense().shape, form.kept()
    (torch.Size([8, 6]), 28)
    """

    TAG = "product"

    factors: nn.ModuleList

    def __init__(self, equation: str, factors: Sequence[Form], shape: Sequence[int]) -> None:
        super().__init__()
        self.equation, self.shape = equation, torch.Size(shape)
        self.factors = nn.ModuleList(factors)

    @classmethod
    def of(cls, equation: str, factors: Sequence[Tensor], shape: Sequence[int]) -> Self:
        """A product with each factor as a trainable leaf."""
        return cls(equation, [Dense(factor.contiguous(), Role.MATRIX) for factor in factors], shape)

    def dense(self) -> Tensor:
        """The product, of ``shape``."""
        factors = [cast("Form", factor).dense() for factor in self.factors]
        return torch.einsum(self.equation, *factors).reshape(self.shape)

    def kept(self) -> int:
        """The entries of all factors."""
        return sum(factor.kept() for factor in self.parts().values())

    def planes(self) -> dict[str, Plane]:
        """Empty: the factors store their own planes."""
        return {}

    def header(self) -> dict[str, Any]:
        """Equation and shape."""
        return {"equation": self.equation, "shape": list(self.shape)}

    @classmethod
    def cost(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Cost:
        """The contraction of factors from left to right, as :func:`torch.einsum` computes it.

        Each step multiplies what there is by the next factor, and sums over the letters that appear nowhere else.
        """
        inputs, _, output = str(header["equation"]).partition("->")
        terms = inputs.split(",")
        sizes: dict[str, int] = {}
        for term, part in zip(terms, parts.values(), strict=True):
            sizes |= zip(term, part.shape, strict=True)
        last = {letter: number for number, term in enumerate(terms) for letter in term} | dict.fromkeys(output, len(terms))
        held, largest, work = set(terms[0]), 0, 0
        for number, term in enumerate(terms[1:], 1):
            largest = max(largest, math.prod(sizes[letter] for letter in held))  # the last product is the form itself
            met = held | set(term)
            work += math.prod(sizes[letter] for letter in met)
            held = {letter for letter in met if last[letter] > number}
        wide, entries = width(parts), math.prod(sizes[letter] for letter in output)
        return Cost(keep=wide * entries, scratch=wide * (entries + 2 * largest), work=entries + work)

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild; raises ValueError when the equation, the factors and the shape do not fit."""
        equation, shape, factors = header["equation"], checked_shape(header["shape"], 1), list(parts.values())
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
