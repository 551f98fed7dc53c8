"""Ternary weights against every choice of three values."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from kogata.forms import Affine
from kogata.methods import MagnitudePruning, Ternary
from kogata.methods.quantization.ternary import ternary
from kogata.network import surgery
from kogata.network.sites import form_of
from tests.methods.training import QUICK, accuracy, trained


def by_brute_force(row: np.ndarray) -> float:
    """The least ‖w − αt‖² over all t, with the best α of each."""
    best = float(row @ row)
    for t in itertools.product((-1.0, 0.0, 1.0), repeat=len(row)):
        signs = np.array(t)
        if signs.any():
            alpha = max(0.0, float(signs @ row / (signs @ signs)))
            best = min(best, float(((row - alpha * signs) ** 2).sum()))
    return best


@given(hnp.arrays(np.float32, (2, 6), elements=st.floats(-8, 8, width=32)))
@settings(max_examples=25, deadline=None)
def test_no_choice_of_three_values_is_closer(rows: np.ndarray) -> None:
    signs, scale = ternary(torch.from_numpy(rows))
    found = (signs * scale).double().numpy()
    for row, close in zip(rows.astype(np.float64), found, strict=True):
        error = float(((row - close) ** 2).sum())
        assert error <= by_brute_force(row) + 1e-5 * float(row @ row) + 1e-12  # scales are half precision


def test_frozen_is_what_the_forward_saw() -> None:
    layer = nn.Conv2d(3, 4, 3)
    net = Ternary(recover=QUICK).begin(layer)
    x = torch.randn(2, 3, 5, 5)
    wanted = net(x)
    model = net.finish()
    form = form_of(model, "weight")
    assert torch.equal(model(x), wanted)
    assert isinstance(form, Affine)
    assert set(form.code.unique().tolist()) == {0, 1, 2}
    assert float(form.zero.float().mean()) == 1


def test_gradients_pass_as_if_not_rounded() -> None:
    layer = nn.Linear(5, 3, bias=False)
    net = Ternary(recover=QUICK).begin(layer)
    x, upstream = torch.randn(4, 5), torch.randn(4, 3)
    (net(x) * upstream).sum().backward()
    (gradient,) = [p.grad for p in net.parameters() if p.grad is not None]
    assert torch.allclose(gradient, upstream.T @ x, atol=1e-5)


def test_training_learns_and_pruned_stays_pruned() -> None:
    job = trained()
    assert accuracy(Ternary(recover=QUICK).apply(job).model) > 0.8
    pruned = MagnitudePruning(sparsity=0.5).apply(job)
    after = Ternary(recover=QUICK).apply(pruned)
    for before, now in zip(surgery.plain(pruned.model).parameters(), surgery.plain(after.model).parameters(), strict=True):
        if before.ndim > 1:
            assert not bool(((before == 0) & (now != 0)).any())


def test_a_row_of_zeros_and_a_single_weight() -> None:
    signs, scale = ternary(torch.zeros(2, 4))
    assert float((signs * scale).abs().max()) == 0
    signs, scale = ternary(torch.tensor([[-0.25]]))
    assert float(signs * scale) == -0.25
