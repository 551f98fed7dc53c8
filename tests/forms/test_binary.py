"""Binary against NumPy, through planes, and what a hostile file could claim."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kogata.forms import Binary, Dense, Form, Role

SHAPES = [(4, 5), (6, 2, 3, 3), (7,), (1, 1), (1, 9)]


def scales(shape: tuple[int, ...]) -> list[torch.Tensor]:
    rows = 1 if len(shape) == 1 else shape[0]
    return [torch.rand(rows, 1) + 0.1, torch.rand(1, 1) + 0.1]


@pytest.mark.parametrize("shape", SHAPES)
def test_is_plus_or_minus_the_scale_of_the_row(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    for scale in scales(shape):
        form = Binary.of(weight, scale)
        rows = weight.reshape(1, -1) if len(shape) == 1 else weight.flatten(1)
        wanted = np.where(rows.numpy() >= 0, scale.numpy(), -scale.numpy()).reshape(shape)
        assert np.array_equal(form.dense().detach().numpy(), wanted)
        assert form.shape == weight.shape


@pytest.mark.parametrize("shape", SHAPES)
def test_rebuilt_from_its_planes(shape: tuple[int, ...]) -> None:
    for scale in scales(shape):
        form = Binary.of(torch.randn(shape), scale)
        planes = {name: plane.array for name, plane in form.planes().items()}
        twin = Binary.restore(form.header(), planes, form.parts())
        assert torch.equal(twin.dense(), form.dense())


def test_zero_counts_as_positive() -> None:
    form = Binary.of(torch.zeros(2, 3), torch.ones(2, 1))
    assert torch.equal(form.dense(), torch.ones(2, 3))


def test_costs_one_bit_for_each_entry() -> None:
    form = Binary.of(torch.randn(64, 256), torch.ones(64, 1) / 3)
    assert 64 * 256 * 0.99 < form.stored_bits() - 64 * 32 <= 64 * 256


def test_gradient_of_a_scale_is_the_sum_of_signs() -> None:
    weight, upstream = torch.randn(3, 8), torch.randn(3, 8)
    form = Binary.of(weight, torch.ones(3, 1))
    (form.dense() * upstream).sum().backward()
    (gradient,) = [p.grad for p in form.parameters()]
    assert gradient is not None
    assert torch.allclose(gradient, (weight.sign() * upstream).sum(1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 1), (4,), (1,), (4, 2), (1, 4), ()])
def test_scales_must_fit_the_rows(shape: tuple[int, ...]) -> None:
    parts: dict[str, Form] = {"scale": Dense(torch.ones(shape), Role.SCALE)}
    with pytest.raises(ValueError, match="scales of shape"):
        Binary.restore({}, {"positive": np.ones((4, 6), np.bool_)}, parts)


def test_a_missing_part_is_an_error() -> None:
    with pytest.raises(KeyError):
        Binary.restore({}, {"positive": np.ones((4, 6), np.bool_)}, {})
