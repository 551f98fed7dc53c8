"""Matrices that are stored in another order, or several in one parameter: by loops, their files, and hostile ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kogata.forms import Dense, Form, Masked, Role, Separate, Transposed
from kogata.forms.stored import apart
from kogata.job import Layout
from kogata.network.layers import kind_of
from tests.forms.test_forms import leaf, masked, rebuilt


def transposed() -> Form:
    """A masked matrix [4, 5] stored as [5, 4]."""
    return Transposed(masked(), (5, 4), (1, 0), (5, 4))


def separate() -> Form:
    """A masked and a dense matrix, stored as [2, 5, 4]."""
    other = Transposed(Dense(torch.randn(4, 5), Role.MATRIX), (5, 4), (1, 0), (5, 4))
    return Separate([transposed(), other])


@pytest.mark.parametrize("make", [transposed, separate])
def test_rebuilt_bit_for_bit(make: Any) -> None:
    form = make()
    twin = rebuilt(form)
    assert torch.equal(twin.dense(), form.dense())
    assert twin.describe() == form.describe()
    assert twin.state_dict().keys() == form.state_dict().keys()
    assert twin.stored_bits() == form.stored_bits() > 0
    assert twin.kept() == form.kept()


@pytest.mark.parametrize("make", [transposed, separate])
def test_gradient_is_that_of_finite_differences(make: Any) -> None:
    form = make().double()
    leaves = [part.values for _, part in form.leaves()]

    def dense(*values: torch.Tensor) -> torch.Tensor:
        names = [f"{path}.values" if path else "values" for path, _ in form.leaves()]
        return torch.func.functional_call(Caller(form), {f"form.{n}": v for n, v in zip(names, values, strict=True)}, ())

    assert torch.autograd.gradcheck(dense, leaves)


class Caller(nn.Module):
    """Calls ``dense`` as a forward."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def forward(self) -> torch.Tensor:
        return self.form.dense()


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=2, max_size=4), seed=st.integers(0, 10_000), count=st.sampled_from([1, 3]))
def test_matrices_apart_are_the_weight(sizes: list[int], seed: int, count: int) -> None:
    """Every order of the axes: the leaves are the matrices that a loop cuts out, and together they are the weight."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.randperm(len(sizes), generator=generator).tolist()
    view = ([count] if count > 1 else []) + sizes
    order = [0, *(axis + 1 for axis in axes)] if count > 1 else axes
    split = int(torch.randint(1, len(sizes), (1,), generator=generator))
    rows = torch.Size(sizes[axis] for axis in axes[:split]).numel()
    shape = (rows, torch.Size(sizes).numel() // rows)
    weight = Dense(torch.randn(view, generator=generator), Role.MATRIX)
    tree = apart(weight, Layout(tuple(view), tuple(order), shape, count))
    assert torch.equal(tree.dense(), weight.values)
    leaves = [part.values for _, part in tree.leaves()]
    wanted = [part.permute(axes).reshape(shape) for part in weight.values.reshape(count, *sizes)]
    assert all(torch.equal(one, other) for one, other in zip(leaves, wanted, strict=True))
    simple = tree.simplified()
    assert isinstance(simple, Dense)
    assert torch.equal(simple.values, weight.values)


def test_leaves_are_trained_where_the_weight_is() -> None:
    for trained in (True, False):
        weight = Dense(nn.Parameter(torch.randn(3, 4, 5), requires_grad=trained), Role.MATRIX)
        tree = apart(weight, Layout((3, 4, 5), (0, 2, 1), (5, 4), 3))
        assert [part.values.requires_grad for _, part in tree.leaves()] == [trained] * 3


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_is_stored_by_its_inputs(groups: int) -> None:
    layer = nn.ConvTranspose2d(4, 6, (3, 2), groups=groups)
    layout = kind_of(layer).layout(layer, "weight")
    assert layout is not None
    tree = apart(Dense(layer.weight, Role.MATRIX), layout)
    ((_, matrix),) = tree.leaves()
    assert matrix.shape == (6, 4 // groups, 3, 2)
    for o in range(6):
        group = o // (6 // groups)
        for i in range(4 // groups):
            stored = layer.weight[group * (4 // groups) + i, o % (6 // groups)]
            assert torch.equal(matrix.values[o, i], stored)


FITS = {"view": [5, 4], "axes": [1, 0], "shape": [5, 4]}


@pytest.mark.parametrize(
    ("kind", "header", "parts"),
    [
        (Transposed, FITS, {"part": leaf(4, 6)}),
        (Transposed, FITS, {}),
        (Transposed, {}, {"part": leaf(4, 5)}),
        (Transposed, FITS | {"axes": [1, 1]}, {"part": leaf(4, 5)}),
        (Transposed, FITS | {"axes": [0]}, {"part": leaf(4, 5)}),
        (Transposed, FITS | {"axes": "10"}, {"part": leaf(4, 5)}),
        (Transposed, FITS | {"view": [-5, -4]}, {"part": leaf(4, 5)}),
        (Transposed, FITS | {"shape": [5, True, 4]}, {"part": leaf(4, 5)}),
        (Transposed, FITS | {"shape": [5.0, 4]}, {"part": leaf(4, 5)}),
        (Transposed, FITS | {"shape": [0, 1 << 40]}, {"part": leaf(0)}),
        (Transposed, {"view": [1] * 99, "axes": list(range(99)), "shape": [1]}, {"part": leaf(1)}),
        (Transposed, {"view": [1 << 20] * 3, "axes": [0, 1, 2], "shape": [1 << 60]}, {"part": leaf(1)}),
        (Separate, {}, {}),
        (Separate, {}, {"matrices.0": leaf(4, 5), "matrices.1": leaf(5, 4)}),
    ],
)
def test_parts_that_do_not_fit_are_refused(kind: type[Form], header: Mapping[str, Any], parts: Mapping[str, Form]) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        kind.restore(header, {}, parts)


def test_matrices_that_would_reserve_too_much_are_refused() -> None:
    small = torch.zeros(1, dtype=torch.bool)
    large = Masked.of(torch.zeros(1), small)
    large.shape = torch.Size((1 << 16, 1 << 14))  # what a few bytes of a mask could claim
    with pytest.raises(ValueError, match="entries"):
        Separate.restore({}, {}, {f"matrices.{n}": large for n in range(3)})
