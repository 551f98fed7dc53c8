"""LSQ: the gradient of the step against finite differences and the paper's formula, and what plain descent makes of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kogata.errors import UsageError
from kogata.forms import Affine, Dense, Role
from kogata.methods import LSQ, MagnitudePruning
from kogata.methods.quantization.lsq import Learnt, Stepped
from kogata.network import surgery
from kogata.network.quantizers import Static, quantizers_of
from kogata.network.sites import form_at, selected_sites
from tests.methods.training import QUICK, accuracy, refused_settings, trained


def by_the_paper(v: Tensor, s: Tensor, low: int, high: int) -> Tensor:
    """∂v̂/∂s, entry by entry."""
    ratio = v / s
    inside = ratio.round() - ratio
    return torch.where(ratio <= -low, -float(low), torch.where(ratio >= high, float(high), inside))


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_gradient_of_the_step_is_the_papers(bits: int) -> None:
    weight, upstream = torch.randn(4, 50), torch.randn(4, 50)
    latent = Stepped(Dense(weight.clone(), Role.MATRIX), bits)
    low, high = 2 ** (bits - 1), 2 ** (bits - 1) - 1
    (latent.dense() * upstream).sum().backward()
    start, found = latent.start, latent.relative.values.grad
    assert found is not None
    wanted = (upstream * by_the_paper(weight, start, low, high)).sum(1, keepdim=True) / (50 * high) ** 0.5
    moved = found * start  # what one unit of plain descent moves the step by
    assert float((moved - wanted).norm() / wanted.norm()) < 1e-4
    ratio = weight / start
    inside = (ratio > -low) & (ratio < high)
    passed = latent.values.values.grad
    assert passed is not None
    assert torch.allclose(passed, upstream * inside)


def test_gradient_of_the_step_is_numerically_right_between_roundings() -> None:
    """With codes that do not change, v̂ = s · code: its slope is the code; the estimator takes v/s off that."""
    weight = torch.tensor([[0.9, -0.52, 2.6, -3.3]], dtype=torch.float64)
    s = torch.tensor([[0.5]], dtype=torch.float64)

    def quantized(step: Tensor) -> Tensor:
        return (weight / step).clamp(-2, 1).round() * step

    slope = (quantized(s + 1e-7) - quantized(s - 1e-7)) / 2e-7
    ratio = weight / s
    inside = (ratio > -2) & (ratio < 1)
    assert torch.allclose(slope - ratio * inside, by_the_paper(weight, s, 2, 1), atol=1e-6)


def test_steps_start_where_the_paper_says() -> None:
    weight = torch.randn(3, 40)
    latent = Stepped(Dense(weight, Role.MATRIX), 4)
    wanted = 2 * weight.abs().mean(1, keepdim=True) / 7**0.5
    assert torch.allclose(latent.start, wanted, rtol=1e-3)  # half precision


def test_plain_descent_moves_a_step_as_in_the_paper() -> None:
    weight, upstream = torch.randn(2, 30), torch.randn(2, 30)
    latent = Stepped(Dense(weight.clone(), Role.MATRIX), 3)
    optimizer = torch.optim.SGD(latent.parameters(), lr=0.01)
    before = latent.start * latent.relative.values.detach()
    (latent.dense() * upstream).sum().backward()
    optimizer.step()
    gradient = (upstream * by_the_paper(weight, before, 4, 3)).sum(1, keepdim=True) / (30 * 3) ** 0.5
    assert torch.allclose(latent.start * latent.relative.values, before - 0.01 * gradient, atol=1e-6)


@pytest.mark.parametrize(("x", "zero"), [(torch.rand(8, 6), 0), (torch.randn(8, 6), 4)])
def test_inputs_are_unsigned_where_nothing_is_negative(x: Tensor, zero: int) -> None:
    quantizer = Learnt(bits=3)
    out = quantizer(x)
    frozen = quantizer.freeze()
    assert (frozen.zero, frozen.bits) == (zero, 3)
    assert torch.equal(frozen(x), out)
    assert float(frozen.scale.detach()) == pytest.approx(2 * float(x.abs().mean()) / (7 - zero) ** 0.5, rel=1e-3)
    out.square().sum().backward()
    assert quantizer.relative.grad is not None
    assert bool(torch.isfinite(quantizer.relative.grad).all())


def test_training_learns_and_the_file_holds_what_ran() -> None:
    job = trained()
    after = LSQ(bits=3, activations=4, recover=QUICK).apply(job)
    assert accuracy(after.model) > 0.85
    found = dict(quantizers_of(after.model))
    assert list(found) == ["0", "3", "6"]
    quantizers = [q for q in found.values() if isinstance(q, Static)]
    assert [quantizer.zero for quantizer in quantizers] == [8, 0, 0]
    for site in selected_sites(job):
        form = form_at(after.model, site)
        assert isinstance(form, Affine)
        assert int(form.code.max()) < 8


def test_a_frozen_layer_computes_what_the_latent_one_did() -> None:
    net = LSQ(bits=2, activations=2, recover=QUICK).begin(nn.Linear(10, 4))
    x = torch.randn(16, 10)
    wanted = net(x).detach()
    assert torch.equal(net.finish()(x), wanted)


def test_pruned_stays_pruned() -> None:
    pruned = MagnitudePruning(sparsity=0.5).apply(trained())
    after = LSQ(bits=4, recover=QUICK).apply(pruned)
    for before, now in zip(surgery.plain(pruned.model).parameters(), surgery.plain(after.model).parameters(), strict=True):
        if before.ndim > 1:
            assert not bool(((before == 0) & (now != 0)).any())


def test_zeros_single_rows_and_steps_that_would_turn_negative() -> None:
    for weight in (torch.zeros(2, 5), torch.randn(1, 5)):
        latent = Stepped(Dense(weight.clone(), Role.MATRIX), 2)
        latent.dense().sum().backward()
        assert bool(torch.isfinite(latent.freeze().dense()).all())
        with torch.no_grad():
            latent.relative.values.sub_(5)
        latent.step()
        assert float(latent.relative.values.detach().min()) > 0
    quantizer = Learnt(bits=4)
    assert not quantizer(torch.zeros(3, 2)).any()
    assert bool(torch.isfinite(quantizer(torch.randn(3, 2))).all())


@pytest.mark.parametrize("settings", [{"bits": 1}, {"bits": 9}, {"bits": 4, "activations": 1}, {"bits": 4, "activations": 9}])
def test_settings_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"lsq: .* expected 2 to 8"):
        refused_settings(LSQ, recover=QUICK, **settings)
