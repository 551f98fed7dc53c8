"""Forms against what they stand for in NumPy, their files, and what a hostile file could claim about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kogata.forms import FORMS, Affine, Codebook, Dense, Form, Masked, Product, Role
from kogata.forms.base import float_plane, float_tensor, index_dtype
from kogata.forms.product import PAIR


def masked(shape: tuple[int, ...] = (4, 5)) -> Masked:
    weight = torch.randn(shape)
    return Masked.of(weight, weight > 0)


def codebook(shape: tuple[int, ...] = (4, 5)) -> Codebook:
    return Codebook.of(torch.randint(0, 3, shape), torch.tensor([-1.0, 0.1, 2.0]))


def affine(shape: tuple[int, ...] = (4, 5)) -> Affine:
    rows = 1 if len(shape) == 1 else shape[0]
    columns = int(np.prod(shape)) // rows
    grid = (rows, -(-columns // 2))
    return Affine.of(torch.randn(shape), torch.rand(grid) + 0.1, torch.full(grid, 4.0), bits=3, group=2)


def product() -> Product:
    return Product.of(PAIR, [torch.randn(4, 2), torch.randn(2, 5)], (4, 5))


def nested() -> Form:
    """A product of a pruned factor that shares values and a quantized one."""
    inner = masked((4, 2))
    return Product(PAIR, [Masked(inner.position, codebook(tuple(inner.values.shape)), (4, 2)), affine((2, 5))], (4, 5))


MAKERS = [masked, codebook, affine, product, nested, lambda: Dense(torch.randn(4, 5), Role.MATRIX)]


def rebuilt(form: Form) -> Form:
    """The form from its header, planes and parts alone."""
    arrays = {name: plane.array for name, plane in form.planes().items()}
    return type(form).restore(form.header(), arrays, {name: rebuilt(part) for name, part in form.parts().items()})


@pytest.mark.parametrize("make", MAKERS)
def test_rebuilt_bit_for_bit(make: Any) -> None:
    form = make()
    twin = rebuilt(form)
    assert torch.equal(twin.dense(), form.dense())
    assert twin.describe() == form.describe()
    assert twin.shape == form.shape == form.dense().shape
    assert twin.state_dict().keys() == form.state_dict().keys()
    assert [leaf.role for _, leaf in twin.leaves()] == [leaf.role for _, leaf in form.leaves()]
    assert twin.stored_bits() == form.stored_bits() > 0


@pytest.mark.parametrize("make", MAKERS)
def test_gradient_is_that_of_finite_differences(make: Any) -> None:
    form = make().double()
    names = [name for name, _ in form.named_parameters()]

    def dense(*values: Tensor) -> Tensor:
        return torch.func.functional_call(form, dict(zip(names, values, strict=True)), (torch.zeros(0).double(),))

    values = [p.detach().clone().requires_grad_() for p in form.parameters()]
    assert torch.autograd.gradcheck(dense, tuple(values))


@pytest.mark.parametrize("make", MAKERS)
def test_only_leaves_hold_parameters(make: Any) -> None:
    form = make()
    assert {id(p) for p in form.parameters()} == {id(leaf.values) for _, leaf in form.leaves()}


def test_masked_is_zeros_and_values() -> None:
    weight = torch.randn(6, 7)
    mask = torch.rand(6, 7) > 0.6
    form = Masked.of(weight, mask)
    assert torch.equal(form.dense(), weight * mask)
    assert torch.equal(form.mask, mask)
    assert form.kept() == int(mask.sum())


@given(st.integers(0, 2**32), st.floats(0.2, 1), st.floats(0.2, 1))
@settings(max_examples=25, deadline=None)
def test_a_mask_in_a_mask_folds(seed: int, outer: float, inner: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 6, generator=generator)
    first = Masked.of(weight, torch.rand(5, 6, generator=generator) <= outer)
    second = Masked.of(first.values.dense(), torch.rand(len(first.values.dense()), generator=generator) <= inner)
    both = Masked(first.position, second, first.shape)
    folded = both.simplified()
    assert isinstance(folded, Masked)
    assert isinstance(folded.values, Dense)
    assert torch.equal(folded.dense(), both.dense())
    assert torch.equal(folded.position, folded.position.sort().values)
    assert rebuilt(folded).dense().equal(folded.dense())


def test_codebook_looks_up() -> None:
    index, table = torch.randint(0, 300, (9, 40)), torch.randn(300)
    form = Codebook.of(index, table)
    assert form.index.dtype == torch.int16
    np.testing.assert_array_equal(form.dense().detach().numpy(), table.numpy()[index.numpy()])


def test_product_is_a_matrix_product() -> None:
    left, right = torch.randn(6, 2), torch.randn(2, 12)
    dense = Product.of(PAIR, [left, right], (6, 3, 2, 2)).dense()
    np.testing.assert_allclose(dense.detach().numpy(), (left.numpy() @ right.numpy()).reshape(6, 3, 2, 2), rtol=1e-5, atol=1e-6)


def test_many_factors_keep_their_order() -> None:
    """Twelve factors: in the order of text the eleventh would come before the third."""
    letters = "abcdefghijklm"
    equation = ",".join(letters[i : i + 2] for i in range(12)) + "->am"
    form = Product.of(equation, [torch.randn(2, 2) for _ in range(12)], (2, 2))
    wanted = np.linalg.multi_dot([leaf.values.detach().double().numpy() for _, leaf in form.leaves()])
    np.testing.assert_allclose(form.dense().detach().numpy(), wanted, rtol=1e-3, atol=1e-4)
    assert torch.equal(rebuilt(form).dense(), form.dense())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("values", [[0.1, -2.5, 3e4], [0.5, -2.0, 0.0], [], [-0.0, 1e-7]])
def test_floats_travel_exactly(dtype: torch.dtype, values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=dtype)
    back = float_tensor(float_plane(tensor).array, str(dtype).removeprefix("torch."))
    assert back.dtype == dtype
    assert torch.equal(back, tensor)
    assert torch.equal(back.signbit(), tensor.signbit())


def test_half_exact_floats_cost_half() -> None:
    assert float_plane(torch.tensor([0.5, 2.0])).spec.dtype == "float16"
    assert float_plane(torch.tensor([0.1, 2.0])).spec.dtype == "float32"
    assert float_plane(torch.tensor([0.5, 1e6])).spec.dtype == "float32"


@pytest.mark.parametrize(
    ("count", "dtype"),
    [(1, torch.uint8), (256, torch.uint8), (257, torch.int16), (32768, torch.int16), (32769, torch.int32)],
)
def test_narrowest_index(count: int, dtype: torch.dtype) -> None:
    assert index_dtype(count) == dtype


FOUR = np.zeros((4, 5), np.uint8)
GRID = np.zeros((4, 3), np.uint8)


def leaf(*shape: int, role: Role = Role.SCALE) -> Dense:
    return Dense(torch.ones(shape), role)


@pytest.mark.parametrize(
    ("kind", "header", "planes", "parts"),
    [
        (Dense, {"role": "king", "dtype": "float32"}, {"values": np.zeros(3, np.float32)}, {}),
        (Dense, {"role": "matrix", "dtype": "complex64"}, {"values": np.zeros(3, np.float32)}, {}),
        (Dense, {"role": "matrix", "dtype": ["float32"]}, {"values": np.zeros(3, np.float32)}, {}),
        (Dense, {"role": "matrix", "dtype": "float32"}, {}, {}),
        (Masked, {}, {"mask": np.ones((2, 2), bool)}, {"values": leaf(3)}),
        (Masked, {}, {"mask": np.ones((2, 2), bool)}, {"values": leaf(2, 2)}),
        (Masked, {}, {"mask": np.ones((2, 2), bool)}, {}),
        (Codebook, {}, {"index": np.array([0, 3], np.uint8)}, {"table": leaf(3)}),
        (Codebook, {}, {"index": np.array([0, 1], np.uint8)}, {"table": leaf(3, 1)}),
        (Codebook, {}, {"index": np.array([-1, 1], np.int16)}, {"table": leaf(3)}),
        (Codebook, {}, {"index": np.array([0], np.uint8)}, {}),
        (Affine, {"bits": 3, "group": 2}, {"code": FOUR, "zero": GRID}, {"scale": leaf(4, 2)}),
        (Affine, {"bits": 3, "group": 2}, {"code": FOUR, "zero": GRID[:, :2]}, {"scale": leaf(4, 3)}),
        (Affine, {"bits": 3, "group": 2}, {"code": FOUR, "zero": GRID[:2]}, {"scale": leaf(2, 3)}),
        (Affine, {"bits": 3, "group": 2}, {"code": FOUR, "zero": GRID[:1]}, {"scale": leaf(4, 3)}),
        (Affine, {"bits": 17, "group": 2}, {"code": FOUR, "zero": GRID}, {"scale": leaf(4, 3)}),
        (Affine, {"bits": 3, "group": 0}, {"code": FOUR, "zero": GRID}, {"scale": leaf(4, 3)}),
        (Affine, {"bits": "3", "group": 2}, {"code": FOUR, "zero": GRID}, {"scale": leaf(4, 3)}),
        (Affine, {"bits": 3, "group": 2}, {"code": FOUR}, {"scale": leaf(4, 3)}),
        (Product, {"equation": "or,ri->oi", "shape": [4, 5]}, {}, {"factors.0": leaf(4, 2), "factors.1": leaf(3, 5)}),
        (Product, {"equation": "or,ri->oi", "shape": [4, 6]}, {}, {"factors.0": leaf(4, 2), "factors.1": leaf(2, 5)}),
        (Product, {"equation": "or,ri->oi", "shape": [-4, -5]}, {}, {"factors.0": leaf(4, 2), "factors.1": leaf(2, 5)}),
        (Product, {"equation": "or,ri->oi", "shape": [4, 5]}, {}, {"factors.0": leaf(4, 2)}),
        (Product, {"equation": "or,ri->oz", "shape": [4, 5]}, {}, {"factors.0": leaf(4, 2), "factors.1": leaf(2, 5)}),
        (Product, {"equation": "or,ri->ooii", "shape": [4, 4, 5, 5]}, {}, {"factors.0": leaf(4, 2), "factors.1": leaf(2, 5)}),
        (Product, {"equation": "...->...", "shape": [4, 5]}, {}, {"factors.0": leaf(4, 5)}),
        (Product, {"equation": 7, "shape": [4, 5]}, {}, {"factors.0": leaf(4, 5)}),
        (Product, {"equation": "a,b,c,d->abcd", "shape": [70000] * 4}, {}, {f"factors.{i}": leaf(70000) for i in range(4)}),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(
    kind: type[Form], header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]
) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        kind.restore(header, planes, parts)


def test_every_form_has_its_own_name() -> None:
    assert len({form.__name__.lower() for form in FORMS}) == len(FORMS)
