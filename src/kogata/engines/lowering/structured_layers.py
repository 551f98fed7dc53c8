"""Linear layers that multiply by a structured matrix with batched products of small dense matrices.

Their parameters are the numbers stored in the file, so that all weights of an exported graph can be bound to forms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from string import ascii_lowercase, ascii_uppercase
from typing import cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata.forms.product import butterfly


def fixed(values: Tensor) -> nn.Parameter:
    """A parameter that is not trained."""
    return nn.Parameter(values.detach().contiguous(), requires_grad=False)


class Structured(nn.Module, ABC):
    """A linear layer from ``[..., I]`` to ``[..., O]``; all axes but the last are batch axes."""

    bias: nn.Parameter | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.outputs, self.inputs = layer.out_features, layer.in_features
        bias = cast("Tensor | None", layer.bias)
        self.register_parameter("bias", None if bias is None else fixed(bias))

    @abstractmethod
    def multiply(self, x_NI: Tensor) -> Tensor:
        """The product without the bias, ``[N, at least O]``; surplus outputs are cropped."""

    @final
    def forward(self, x: Tensor) -> Tensor:
        """The outputs ``[..., O]``."""
        y = self.multiply(x if x.ndim == 2 else x.reshape(-1, self.inputs))
        y = y if y.shape[1] == self.outputs else y[:, : self.outputs]
        y = y if self.bias is None else y + self.bias
        return y if x.ndim == 2 else y.reshape(*x.shape[:-1], self.outputs)


@final
class BlockDiagonalLinear(Structured):
    """A block-diagonal matrix with blocks ``[b, rows, columns]``: one batched product."""

    def __init__(self, layer: nn.Linear, blocks_BOI: Tensor) -> None:
        super().__init__(layer)
        self.weight = fixed(blocks_BOI)
        self.padding = len(blocks_BOI) * blocks_BOI.shape[2] - self.inputs

    def multiply(self, x_NI: Tensor) -> Tensor:
        """See :class:`Structured`."""
        x_NBI = functional.pad(x_NI, (0, self.padding)).reshape(-1, len(self.weight), self.weight.shape[2])
        return torch.bmm(self.weight, x_NBI.permute(1, 2, 0)).permute(2, 0, 1).flatten(1)


@final
class MonarchLinear(Structured):
    """``W[(l, j), (k, i)] = Σ_r left[j, l, k, r] right[k, j, r, i]``: two batched products with a permutation between them."""

    def __init__(self, layer: nn.Linear, left_JLKR: Tensor, right_KJRI: Tensor) -> None:
        super().__init__(layer)
        self.left, self.right = fixed(left_JLKR), fixed(right_KJRI)

    def multiply(self, x_NI: Tensor) -> Tensor:
        """See :class:`Structured`."""
        return monarch(x_NI, self.left, self.right)


def monarch(x_NI: Tensor, left_JLKR: Tensor, right_KJRI: Tensor) -> Tensor:
    """The product ``[N, O]`` of :class:`MonarchLinear`."""
    x_KIN = x_NI.reshape(-1, len(right_KJRI), right_KJRI.shape[3]).permute(1, 2, 0)
    inner_KJRN = torch.bmm(right_KJRI.flatten(1, 2), x_KIN).unflatten(1, right_KJRI.shape[1:3])
    y_JLN = torch.bmm(left_JLKR.flatten(2), inner_KJRN.transpose(0, 1).flatten(1, 2))
    return y_JLN.permute(2, 1, 0).flatten(1)


@final
class ButterflyLinear(Structured):
    """A product of many sparse factors. Each call multiplies them out to the two factors of a Monarch matrix.

    An engine with constant folding does this once, when it loads the graph. Two batched products with blocks of size √n are
    faster than log n passes over the memory.
    """

    def __init__(self, layer: nn.Linear, factors: Sequence[Tensor]) -> None:
        super().__init__(layer)
        self.count = len(factors)
        for number, factor in enumerate(factors):
            self.register_parameter(f"factor_{number}", fixed(factor))

    def multiply(self, x_NI: Tensor) -> Tensor:
        """See :class:`Structured`."""
        return monarch(x_NI, *multiplied_out([self.get_parameter(f"factor_{number}") for number in range(self.count)]))


def multiplied_out(factors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The left and the right factor of the Monarch matrix (see :func:`monarch`) equal to a product of butterfly factors."""
    early, rest = len(factors) // 2, len(factors) - len(factors) // 2
    first, second = butterfly_halves(len(factors))
    right = torch.einsum(first, *factors[:early])  # [inputs of the later digits, outputs of the early ones, inputs of these]
    left = torch.einsum(second, *factors[early:])  # [outputs of the early digits, outputs of the later ones, inputs of these]
    right = right.flatten(rest + early).flatten(rest, rest + early - 1).flatten(0, rest - 1)
    left = left.flatten(early + rest).flatten(early, early + rest - 1).flatten(0, early - 1)
    return left[..., None], right[:, :, None]


def butterfly_halves(count: int) -> tuple[str, str]:
    """The einsum equations for the products of the first and the second half of butterfly factors.

    >>> butterfly_halves(3)
    ('Aabc->cbAa', 'ABbc,ABCc->ACBcb')
    """
    factors, half = butterfly(count).split("->")[0].split(","), count // 2
    rows, columns = ascii_uppercase[:count], ascii_lowercase[:count]
    later, early = slice(count, half - 1 if half else None, -1), slice(half - 1, None, -1)
    right = f"{','.join(factors[:half])}->{columns[later]}{rows[early]}{columns[early]}"
    return right, f"{','.join(factors[half:])}->{rows[early]}{rows[later]}{columns[later]}"


@final
class KroneckerLinear(Structured):
    """``Σ_r A_r ⊗ B_r``, left ``[a, r, c]``, right ``[r, b, d]``: y = Σ_r A_r X B_rᵀ for the input as a matrix X ``[c, d]``."""

    def __init__(self, layer: nn.Linear, left_ARC: Tensor, right_RBD: Tensor) -> None:
        super().__init__(layer)
        self.left, self.right = fixed(left_ARC), fixed(right_RBD)

    def multiply(self, x_NI: Tensor) -> Tensor:
        """See :class:`Structured`."""
        (_, ranks, c), (_, b, d) = self.left.shape, self.right.shape
        x_NCD = x_NI.reshape(-1, c, d)
        inner = (x_NCD @ self.right.flatten(0, 1).T).reshape(-1, c, ranks, b).transpose(1, 2).reshape(-1, ranks * c, b)
        return (self.left.flatten(1) @ inner).flatten(1)


@final
class Added(nn.Module):
    """The sum of the outputs of several layers with the same input."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the outputs."""
        first, *others = self.layers
        y = cast("Tensor", first(x))
        for layer in others:
            y = y + layer(x)
        return y
