"""Filters of several kernels against a loop, their files, and what a hostile file could claim about them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kogata.engines.lowering.lower import lower
from kogata.forms import Form, Masked, Product
from kogata.forms.product import SQUEEZED
from kogata.forms.stacked import Stacked
from kogata.network import surgery
from kogata.network.sites import sites_of
from tests.forms.test_forms import leaf, rebuilt

MEMBER = torch.tensor([1, 0, 0, 2, 1, 0])


def stacked() -> Stacked:
    """Kernels of one place, of a line and of all places."""
    return Stacked.of(MEMBER, [torch.randn(3, 4, 1, 1), torch.randn(2, 4, 3, 1), torch.randn(1, 4, 3, 5)], (3, 5))


def nested() -> Form:
    small = torch.randn(3, 4, 1, 1)
    return Product(SQUEEZED[2], [
        Stacked(MEMBER.clamp_max(1).to(torch.uint8), [Masked.of(small, small > 0), leaf(3, 4, 3, 3)], (3, 3)), leaf(4, 7),
    ], (6, 7, 3, 3))  # fmt: skip


def test_dense_is_what_a_loop_says() -> None:
    form, counts = stacked(), [0, 0, 0]
    wanted = torch.zeros(6, 4, 3, 5)
    small, line, large = (part.dense() for part in form.parts().values())
    for output, member in enumerate(MEMBER.tolist()):
        if member == 0:
            wanted[output, :, 1, 2] = small[counts[0], :, 0, 0]
        elif member == 1:
            wanted[output, :, :, 2] = line[counts[1], :, :, 0]
        else:
            wanted[output] = large[counts[2]]
        counts[member] += 1
    assert torch.equal(form.dense(), wanted)
    assert form.shape == (6, 4, 3, 5)
    assert form.kept() == 3 * 4 + 2 * 12 + 60


@pytest.mark.parametrize("make", [stacked, nested])
def test_rebuilt_bit_for_bit(make: Any) -> None:
    form = make()
    twin = rebuilt(form)
    assert torch.equal(twin.dense(), form.dense())
    assert twin.describe() == form.describe()
    assert twin.state_dict().keys() == form.state_dict().keys()
    assert twin.stored_bits() == form.stored_bits() > 0


@pytest.mark.parametrize("make", [stacked, nested])
def test_gradient_is_that_of_finite_differences(make: Any) -> None:
    form = make().double()
    names = [name for name, _ in form.named_parameters()]

    def dense(*values: Tensor) -> Tensor:
        return torch.func.functional_call(form, dict(zip(names, values, strict=True)), (torch.zeros(0).double(),))

    assert torch.autograd.gradcheck(dense, tuple(form.parameters()))


@pytest.mark.parametrize(
    ("header", "member", "shapes", "reason"),
    [
        ({"kernel": [3, 3]}, [0, 1], [(1, 4, 3, 3)], "number of its filters"),
        ({"kernel": [3, 3]}, [0, 0], [(1, 4, 3, 3)], "number of its filters"),
        ({"kernel": [3, 3]}, [0, -1], [(1, 4, 3, 3)], "negative"),
        ({"kernel": [3, 3]}, [0, 1], [(1, 4, 1, 1), (1, 5, 3, 3)], "parts of shapes"),
        ({"kernel": [3, 3]}, [[0], [1]], [(1, 4, 1, 1), (1, 4, 3, 3)], "parts of shapes"),
        ({"kernel": [3, 3]}, [0], [(1, 4, 2, 2)], "about the centre"),
        ({"kernel": [1, 1]}, [0], [(1, 4, 3, 3)], "about the centre"),
        ({"kernel": [3]}, [0], [(1, 4, 3, 3)], "argument 2"),
        ({"kernel": []}, [0], [(1, 4)], "about the centre"),
        ({"kernel": [3]}, [0], [(1,)], "argument 2"),
        ({"kernel": [3]}, [], [(0, 4, 3)], "parts of shapes"),
        ({"kernel": [3, 3]}, [], [], "parts of shapes"),
        ({"kernel": [1 << 20 | 1, 1 << 20 | 1]}, [0], [(1, 4, 1, 1)], "at most"),
    ],
)
def test_damage_is_refused(header: dict[str, Any], member: list[int], shapes: list[tuple[int, ...]], reason: str) -> None:
    parts = {f"filters.{n}": leaf(*shape) for n, shape in enumerate(shapes)}
    with pytest.raises(ValueError, match=reason):
        Stacked.restore(header, {"member": np.array(member, dtype=np.int16)}, parts)


def test_what_would_not_be_cheaper_stays_dense() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3))
    expand = Stacked.of(MEMBER.clamp_max(1), [torch.randn(3, 9, 1, 1), torch.randn(3, 9, 3, 3)], (3, 3))
    form = Product(SQUEEZED[2], [expand, leaf(9, 4)], (6, 4, 3, 3))
    surgery.attach(model, sites_of(model)[1], form)
    assert type(lower(model)[0]) is nn.Conv2d  # type: ignore[index]


def test_a_kernel_that_is_not_the_layers_stays_dense() -> None:
    """A form from a file may give the right number of entries from parts of other extents."""
    model = nn.Sequential(nn.Conv2d(8, 6, (3, 1)))
    expand = Stacked.of(MEMBER.clamp_max(1), [torch.randn(3, 2, 1, 1), torch.randn(3, 2, 1, 3)], (1, 3))
    surgery.attach(model, sites_of(model)[1], Product(SQUEEZED[2], [expand, leaf(2, 8)], (6, 8, 3, 1)))
    assert type(lower(model)[0]) is nn.Conv2d  # type: ignore[index]
