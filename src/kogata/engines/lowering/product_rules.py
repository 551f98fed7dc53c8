"""The lowering rule for products of factors: a chain of layers, one or more for each factor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from kogata.engines.lowering.costs import Costs
from kogata.engines.lowering.layers import Stage, convolutions, kind_of, linears, stack, table
from kogata.engines.lowering.structured_rules import is_large_linear, structured_product
from kogata.forms import Product, Stacked
from kogata.forms.product import CP, DEPTHWISE, PAIR, SEPARABLE, SQUEEZED, TUCKER


def product(form: Product, layer: nn.Module, costs: Costs) -> nn.Module | None:
    """Split a linear layer into two, an embedding into an embedding and a linear layer, a convolution into one per factor.

    None where these cost more than the dense layer, and for other layers, which may use their weight in other ways.
    """
    factors = [factor.dense().detach() for factor in form.parts().values()]
    kind = kind_of(layer)
    if form.equation != PAIR and is_large_linear(layer, costs.chain):
        return structured_product(form.equation, factors, layer, costs)
    if kind is nn.Linear or kind is nn.Embedding:
        if form.equation != PAIR or sum(factor.numel() for factor in factors) >= form.shape.numel():
            return None
        left_OR, right_RI = factors
        if kind is nn.Embedding:
            return table(cast("nn.Embedding", layer), left_OR, right_RI)
        return linears(cast("nn.Linear", layer), left_OR, right_RI)
    if form.equation in SQUEEZED.values():
        expand = form.factors[0]
        if not isinstance(expand, Stacked) or expand.shape[2:] != form.shape[2:]:
            return None
        return stack(layer, [part.dense().detach() for part in expand.parts().values()], expand.order(), factors[1])
    stages = _stages(form.equation, factors, form.shape[2:], costs)
    return None if stages is None else convolutions(layer, stages, costs.move)


def _stages(equation: str, factors: Sequence[Tensor], kernel: Sequence[int], costs: Costs) -> list[Stage] | None:
    """The convolutions, in order of application, for a product ``[outputs, inputs, *kernel]``; None for other equations."""
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
        if len(kernel) == 2 and min(kernel) > costs.separable:
            middle = [Stage(torch.einsum("rw,rh->rhw", *lines)[:, None], every, len(left_OR.T))]
        return [point(right_RI), *middle, point(left_OR)]
    return None
