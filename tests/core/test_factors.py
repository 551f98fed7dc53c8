"""Factors and masks that a forward puts on a weight: against Gram matrices of the inputs computed by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata.testing.comparisons import assert_near
from tests.core.watched import SIZE, Forward, Weight, gathered, gram, inputs, of_rows, rounds_better

FACTORS: dict[str, tuple[Forward, Callable[[Weight], Tensor]]] = {
    "input": (lambda m, x: functional.linear(x, m.w * m.each), lambda m: m.each),
    "divided": (lambda m, x: functional.linear(x, m.w.div(m.each)), lambda m: 1 / m.each),
    "transposed": (lambda m, x: x @ (m.w.T * m.each[:, None]).contiguous(), lambda m: m.each),
    "in_place": (lambda m, x: functional.linear(x, m.w.clone().mul_(m.each)), lambda m: m.each),
    "uniform": (lambda m, x: functional.linear(x, 3 * m.w), lambda m: torch.full((SIZE,), 3.0)),
    "columns": (lambda m, x: functional.linear(x, m.w.masked_fill(m.each < 1, 0)), lambda m: (m.each >= 1).float()),
    "shifted": (lambda m, x: functional.linear(x, m.w + m.mask), lambda m: torch.ones(SIZE)),
    "straight_through": (lambda m, x: functional.linear(x, m.w + (m.w.tanh() - m.w).detach()), lambda m: torch.ones(SIZE)),
    "output": (lambda m, x: functional.linear(x, m.w * m.each[:, None]), lambda m: torch.ones(SIZE)),
    "normalized": (lambda m, x: functional.linear(x, functional.normalize(m.w, dim=1)), lambda m: torch.ones(SIZE)),
    "normalized_inputs": (
        lambda m, x: functional.linear(x, functional.normalize(m.w, dim=0)), lambda m: 1 / m.w.detach().norm(dim=0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FACTORS)
def test_factors_of_inputs_are_part_of_them(name: str) -> None:
    forward, factor = FACTORS[name]
    model, batches = Weight(forward), inputs()
    assert_near(gram(model, batches)[0], of_rows(*(x * factor(model) for x in batches)), 1e-5)
    rounds_better(model, batches)


def test_factors_of_inputs_and_outputs_together() -> None:
    model, batches = Weight(lambda m, x: functional.linear(x, m.each[:, None] * m.w * m.each.flip(0))), inputs()
    found, wanted = gram(model, batches)[0], of_rows(*(x * model.each.flip(0) for x in batches))
    assert_near(found / found.trace(), wanted / wanted.trace(), 1e-5)  # how much each row weighs is no matter
    rounds_better(model, batches)


def test_each_use_has_factors_of_its_own() -> None:
    model = Weight(lambda m, x: functional.linear(x, m.w * m.each) + functional.linear(x.flip(1), m.w * 2))
    batches = inputs()
    assert_near(gram(model, batches)[0], of_rows(*(x * model.each for x in batches), *(2 * x.flip(1) for x in batches)), 1e-5)


def test_factors_of_a_grouped_convolution() -> None:
    model = Weight(lambda m, x: functional.conv2d(x, m.w * m.get_buffer("places"), groups=2), (4, 2, 3, 3))
    model.register_buffer("places", factor := torch.rand(2, 3, 3) + 0.5)  # of the channels of a group and of the kernel
    x = torch.randn(2, 4, 5, 5)
    patches = functional.unfold(x, 3).view(2, 2, 18, 9).permute(1, 0, 3, 2).flatten(1, 2) * factor.flatten()
    assert_near(gram(model, [x]), patches.mT @ patches / 18, 1e-5)


MASKS: dict[str, Forward] = {
    "mask": lambda m, x: functional.linear(x, m.w * m.mask),
    "filled": lambda m, x: functional.linear(x, m.w.masked_fill(m.mask > 0, 0)),
    "where": lambda m, x: functional.linear(x, torch.where(m.mask > 0, m.w, 0.0)),
    "lower": lambda m, x: functional.linear(x, m.w.tril()),
    "its_own": lambda m, x: functional.linear(x, m.w * (m.w.abs() > 0.1)),
    "one_use": lambda m, x: functional.linear(x, m.w) + functional.linear(x, m.w * m.mask),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_of_single_entries_leaves_no_common_gram(name: str) -> None:
    found = gathered(Weight(MASKS[name]), inputs())["w"]
    assert found.gram_GII is None
    assert "masks or scales its entries one by one, so that no one Gram matrix describes its inputs" in found.unseen


def test_a_weight_added_to_its_transpose_has_no_common_gram() -> None:
    found = gathered(Weight(lambda m, x: functional.linear(x, m.w + m.w.T)), inputs())["w"]
    assert found.gram_GII is None
    assert "adds or multiplies several of its entries into one" in found.unseen


def test_another_weight_in_it_counts_as_a_constant() -> None:
    class Adapted(Weight):
        def __init__(self) -> None:
            super().__init__(lambda m, x: x)
            self.down, self.up = nn.Parameter(torch.randn(2, SIZE)), nn.Parameter(torch.randn(SIZE, 2))

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x, self.w + self.up @ self.down)

    batches = inputs()
    found = gathered(Adapted(), batches)
    assert found["w"].gram_GII is not None
    assert_near(found["w"].gram_GII[0], of_rows(*batches), 1e-5)
    assert "makes another weight of it" in found["down"].unseen
    assert "makes another weight of it" in found["up"].unseen
