"""Lowering rules for structured matrices: linear layers with a fast multiplication."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn

from kogata.engines.lowering.costs import Costs
from kogata.engines.lowering.layers import kind_of
from kogata.engines.lowering.structured_layers import (
    BlockDiagonalLinear,
    ButterflyLinear,
    KroneckerLinear,
    MonarchLinear,
    multiplied_out,
)
from kogata.engines.lowering.transform_layers import (
    CirculantLinear,
    CosineCirculantLinear,
    DisplacementLinear,
    FastfoodLinear,
    FourierCirculantLinear,
)
from kogata.forms import Displacement, Fastfood, Tied
from kogata.forms.product import KRONECKER, MONARCH, butterfly
from kogata.forms.structured_maps import Circulant, Diagonal


def is_large_linear(layer: nn.Module, entries: int) -> TypeGuard[nn.Linear]:
    """Whether a layer is linear, has at least ``entries`` weights, and has a dtype that all structured layers support."""
    if kind_of(layer) is not nn.Linear or not isinstance(layer, nn.Linear):
        return False
    large = layer.out_features * layer.in_features >= entries
    return large and layer.weight.dtype in (torch.float32, torch.float64)


def circulant(form: Tied, layer: nn.Module, costs: Costs) -> nn.Module | None:
    """FFTs where the engine is fast at them; otherwise cosines for small blocks, or the engine's FFT for a single large one."""
    map = cast("Circulant", form.map)
    if not is_large_linear(layer, costs.transforms) or map.block < costs.shortest:
        return None
    blocks = map.blocks((layer.out_features, layer.in_features))
    base_PQB, sign_I = form.base.dense().detach().reshape(*blocks, map.block), map.signs(layer.in_features)
    if costs.spectra:
        return CirculantLinear(layer, base_PQB, sign_I, costs)
    if map.block <= costs.cosines:
        return CosineCirculantLinear(layer, base_PQB, sign_I)
    if blocks == (1, 1) and map.block.bit_count() == 1 and map.block >= costs.fourier:
        return FourierCirculantLinear(layer, base_PQB, sign_I)
    return None


def block_diagonal(form: Tied, layer: nn.Module, costs: Costs) -> nn.Module | None:
    """One batched product with the blocks."""
    if not is_large_linear(layer, costs.chain) or not _pays(form.base.shape.numel(), layer, costs):
        return None
    shape = cast("Diagonal", form.map).base((layer.out_features, layer.in_features))
    return BlockDiagonalLinear(layer, form.base.dense().detach().reshape(shape))


def displacement(form: Displacement, layer: nn.Module, costs: Costs) -> nn.Module | None:
    """FFTs for each pair of generators."""
    ranks = form.g.shape[0]
    if not costs.spectra or not is_large_linear(layer, ranks * costs.transforms):
        return None
    return DisplacementLinear(layer, form.g.dense().detach(), form.h.dense().detach())


def fastfood(form: Fastfood, layer: nn.Module, costs: Costs) -> nn.Module | None:
    """Hadamard transforms."""
    if not is_large_linear(layer, costs.transforms):
        return None
    return FastfoodLinear(layer, [part.dense().detach() for part in form.parts().values()], form.order)


def structured_product(equation: str, factors: Sequence[Tensor], layer: nn.Linear, costs: Costs) -> nn.Module | None:
    """Batched products with the factors of a Monarch, butterfly or Kronecker matrix."""
    if equation == butterfly(len(factors)) and len(factors) > 1:
        left_JLKR, right_KJRI = multiplied_out(factors)
        if not _pays(left_JLKR.numel() + right_KJRI.numel(), layer, costs):
            return None
        return MonarchLinear(layer, left_JLKR, right_KJRI) if costs.stores else ButterflyLinear(layer, factors)
    if equation == MONARCH and _pays(sum(factor.numel() for factor in factors), layer, costs):
        return MonarchLinear(layer, *factors)
    if equation == KRONECKER:
        (high, ranks, wide), (_, *low) = (factor.shape for factor in factors)
        if _pays(ranks * (wide * math.prod(low) + high * wide * low[0]), layer, costs):
            return KroneckerLinear(layer, *factors)
    return None


def _pays(products: int, layer: nn.Linear, costs: Costs) -> bool:
    """Whether ``products`` multiply-adds in small batched products cost no more than the dense product."""
    return costs.batched * products <= layer.out_features * layer.in_features
