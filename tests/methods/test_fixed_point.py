"""Fixed point: the mean of many stochastic roundings, saturation, exact storage, and where nearest stalls."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.errors import NotApplicable, UsageError
from kogata.forms import Affine
from kogata.methods import FixedPoint, MagnitudePruning, Recover
from kogata.methods.quantization.fixed_point import Grid
from kogata.network import surgery
from kogata.network.quantizers import Static, quantizers_of
from kogata.network.sites import form_at, form_of, selected_sites
from tests.methods.training import QUICK, accuracy, refused_settings, trained

GRID = Grid(integer=3, fraction=5, stochastic=True, loss_scale=1.0)


def test_the_mean_of_many_roundings_is_the_number() -> None:
    x = torch.linspace(-3.9, 3.9, 41)
    drawn = GRID.rounded(x.expand(20_000, -1), stochastic=True)
    below, step = (x * 32).floor() / 32, 1 / 32
    assert bool(((drawn == below) | (drawn == below + step)).all())
    assert float((drawn.mean(0) - x).abs().max()) < 5 * step / 2 / 20_000**0.5


def test_nearest_and_saturation() -> None:
    x = torch.tensor([0.0, 0.015, 0.016, -0.017, 3.99, 100.0, -100.0])
    wanted = torch.tensor([0.0, 0.0, 1 / 32, -1 / 32, 127 / 32, 127 / 32, -4.0])
    assert torch.equal(GRID.rounded(x, stochastic=False), wanted)
    assert torch.equal(GRID.rounded(wanted, stochastic=True), wanted)  # what is on the grid stays


def test_gradients_are_rounded() -> None:
    layer = nn.Linear(6, 2, bias=False)
    net = FixedPoint(integer=3, fraction=5, rounding="nearest", recover=QUICK).begin(layer)
    x, upstream = torch.randn(4, 6), torch.randn(4, 2)
    on_grid = GRID.rounded(x, stochastic=False)
    (net(x) * upstream).sum().backward()
    (gradient,) = [p.grad for p in net.parameters() if p.grad is not None]
    assert torch.equal(gradient, GRID.rounded(upstream.T @ on_grid, stochastic=False))


def regression(rounding: str) -> float:
    """How far a line is from the truth after many updates that are all smaller than half a step."""
    torch.manual_seed(0)
    inputs = torch.randn(64, 4)
    targets = inputs @ torch.tensor([[0.5, -0.25, 0.75, -0.5]]).T
    method = FixedPoint(integer=4, fraction=6, rounding="nearest" if rounding == "nearest" else "stochastic", recover=QUICK)
    layer = nn.Linear(4, 1, bias=False)
    nn.init.zeros_(layer.weight)
    net = method.begin(layer)
    optimizer = torch.optim.SGD(net.parameters(), lr=2e-3)
    for _ in range(1500):
        optimizer.zero_grad()
        functional.mse_loss(net(inputs), targets).backward()
        optimizer.step()
        net.step(progress=0.0)
    error = functional.mse_loss(net.finish()(inputs).detach(), targets) / targets.square().mean()
    return float(error)


def test_nearest_stalls_where_stochastic_learns() -> None:
    assert regression("nearest") == 1.0  # not one update was made
    assert regression("stochastic") < 0.05


def test_what_is_stored_are_the_numbers_of_the_training() -> None:
    job = trained()
    after = FixedPoint(integer=4, fraction=12, recover=QUICK).apply(job)
    assert accuracy(after.model) > 0.9
    for site in selected_sites(job):
        form = form_at(after.model, site)
        assert isinstance(form, Affine)
        codes = form.dense().detach() * 2**12
        assert torch.equal(codes, codes.round())
        assert float(codes.min()) >= -(2**15)
        assert float(codes.max()) < 2**15
        beside = form_of(after.model.get_submodule(site.module), "bias")
        assert isinstance(beside, Affine)
    quantizers = [q for _, q in quantizers_of(after.model)]
    assert all(isinstance(q, Static) and (q.bits, q.zero, float(q.scale.detach())) == (16, 2**15, 2.0**-12) for q in quantizers)
    assert len(quantizers) == 3


def test_pruned_stays_pruned() -> None:
    pruned = MagnitudePruning(sparsity=0.5).apply(trained())
    after = FixedPoint(integer=4, fraction=8, recover=QUICK).apply(pruned)
    now = surgery.plain(after.model).state_dict()
    for name, before in surgery.plain(pruned.model).named_parameters():
        if before.ndim > 1:
            assert not bool(((before == 0) & (now[name] != 0)).any())


def test_an_untrained_net_can_begin() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(128, 6)
    job = prepare(
        nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)),
        Task(calibration=[inputs], train=[(inputs, (inputs[:, 0] > 0).long())] * 8, loss=functional.cross_entropy),
    )
    after = FixedPoint(integer=4, fraction=12, recover=Recover(epochs=20, learning_rate=1e-2, distill=0.0)).apply(job)
    assert float((after.model(inputs).argmax(1) == (inputs[:, 0] > 0).long()).float().mean()) > 0.95


def test_narrow_floats_cannot_hold_the_numbers() -> None:
    layer = nn.Linear(4, 2).bfloat16()
    with pytest.raises(NotApplicable, match=r"fixed-point: weight is torch.bfloat16, which cannot hold 16 bits"):
        FixedPoint(integer=4, fraction=12, recover=QUICK).begin(layer)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"integer": 0, "fraction": 4}, "integer is 0; expected 1 to 16"),
        ({"integer": 2, "fraction": -1}, "fraction is -1; expected 0 to below 16"),
        ({"integer": 9, "fraction": 8}, "9 integer and 8 fraction bits; expected at most 16 bits together"),
    ],
)
def test_settings_are_checked(settings: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError, match=f"fixed-point: {words}"):
        refused_settings(FixedPoint, recover=QUICK, **settings)
