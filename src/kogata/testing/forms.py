"""The contract of every form: it can be rebuilt from its stored parts, it is trainable, and it refuses parts that do not fit.

Other packages run these checks by :func:`kogata.testing.form_checks`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kogata.coding import decode, encode
from kogata.forms import Dense, Form
from kogata.network import surgery
from kogata.network.sites import form_at, sites_of
from kogata.storage.load import load
from kogata.storage.write import foreign_forms, save

REFUSALS = (ValueError, KeyError, TypeError)  # the only exceptions that restore() may raise


def rebuilt(form: Form) -> Form:
    """The form rebuilt from its header (through JSON), its coded planes and its parts alone."""
    arrays = {name: decode(encode(plane).data, plane.spec) for name, plane in form.planes().items()}
    header = json.loads(json.dumps(form.header()))
    return type(form).restore(header, arrays, {name: rebuilt(part) for name, part in form.parts().items()})


def is_rebuilt_bit_for_bit(make: Callable[[], Form], folder: Path) -> None:
    """The form rebuilt from header, planes and parts has the same tensor, shape, roles and size."""
    form = make()
    twin = rebuilt(form)
    assert torch.equal(twin.dense(), form.dense()), "the rebuilt form gives another tensor"
    assert twin.shape == form.shape == form.dense().shape, f"shape {form.shape}, dense() gives {form.dense().shape}"
    assert [leaf.role for _, leaf in twin.leaves()] == [leaf.role for _, leaf in form.leaves()], "the roles of leaves differ"
    assert twin.describe() == form.describe(), "the rebuilt form describes itself in other words"
    assert twin.stored_bits() == form.stored_bits() > 0, "stored_bits() differs, or is not positive"
    assert 0 < form.kept() <= max(form.shape.numel(), form.kept()), "kept() is not positive"


def only_leaves_hold_parameters(make: Callable[[], Form], folder: Path) -> None:
    """All parameters belong to Dense leaves, because methods reach no others."""
    form = make()
    assert {id(p) for p in form.parameters()} == {id(leaf.values) for _, leaf in form.leaves()}, "a node has a parameter"


def gradients_are_exact(make: Callable[[], Form], folder: Path) -> None:
    """``dense()`` is differentiable in every leaf: gradients match finite differences in float64."""
    form = make().double()
    names = [name for name, _ in form.named_parameters()]

    def dense(*values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(form, given, (torch.zeros(0, dtype=torch.float64),))

    assert torch.autograd.gradcheck(dense, tuple(p.detach().clone().requires_grad_() for p in form.parameters()))


def copies_are_independent(make: Callable[[], Form], folder: Path) -> None:
    """A deep copy gives the same tensor and shares no leaf."""
    form = make()
    twin = copy.deepcopy(form)
    before = form.dense().detach().clone()
    assert torch.equal(twin.dense(), before), "a copy gives another tensor"
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert torch.equal(form.dense(), before), "changing a copy changes the form"


def holds_a_weight_through_a_file(make: Callable[[], Form], folder: Path) -> None:
    """Attached to a layer, saved and loaded, the form gives the layer the same weight."""
    form = make()
    model, fresh = _Holder(form.shape), _Holder(form.shape)
    (site,) = sites_of(model)
    surgery.attach(model, site, form)
    save(model, folder / "form.kogata")
    loaded = load(folder / "form.kogata", into=fresh, forms=foreign_forms(model))
    assert torch.equal(loaded.get_parameter("weight") if isinstance(form, Dense) else _weight(loaded), form.dense().detach())
    assert form_at(loaded, site).describe() == form.describe(), "another form came back"


def refuses_what_does_not_fit(make: Callable[[], Form], folder: Path) -> None:
    """Invalid headers, planes and parts raise only the errors that :meth:`Form.restore` documents."""
    form = make()
    header = json.loads(json.dumps(form.header()))
    arrays = {name: plane.array for name, plane in form.planes().items()}
    parts = form.parts()
    refused = 0
    for key in header:
        for wrong in (None, -1, 0, 1 << 40, 0.5, "x", [], [-1], [1 << 40, 1 << 40], {}):
            refused += _refuses(form, header | {key: wrong}, arrays, parts)
        refused += _refuses(form, {k: v for k, v in header.items() if k != key}, arrays, parts)
    for key, array in arrays.items():
        refused += _refuses(form, header, {k: v for k, v in arrays.items() if k != key}, parts)
        for wrong in (array[:0], np.zeros((1, 2, 3, 4, 5), array.dtype)):
            refused += _refuses(form, header, arrays | {key: wrong}, parts)
    for key in parts:
        refused += _refuses(form, header, arrays, {k: v for k, v in parts.items() if k != key})
    assert refused or not (header or arrays or parts), "restore() accepts whatever it is given"


def _refuses(form: Form, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> bool:
    try:
        type(form).restore(header, arrays, parts)
    except REFUSALS:
        return True
    return False


def _weight(model: nn.Module) -> Tensor:
    weight = model.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


class _Holder(nn.Module):
    """A module with one weight."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))


CHECKS: Mapping[str, Callable[[Callable[[], Form], Path], None]] = {
    check.__name__: check
    for check in (
        is_rebuilt_bit_for_bit, only_leaves_hold_parameters, gradients_are_exact, copies_are_independent,
        holds_a_weight_through_a_file, refuses_what_does_not_fit,
    )
}  # fmt: skip
