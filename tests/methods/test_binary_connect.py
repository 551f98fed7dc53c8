"""BinaryConnect: integers, probabilities and clipping by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kogata.errors import DataError
from kogata.forms import Binary, Dense, Role
from kogata.job import Where
from kogata.methods import BinaryConnect, MagnitudePruning
from kogata.methods.base.compose import chain, only
from kogata.methods.quantization.binary_connect import Signs
from kogata.network import surgery
from kogata.network.sites import form_at, model_bits, selected_sites
from tests.methods.training import QUICK, accuracy, job_of, network, trained


def signs(weight: torch.Tensor, *, stochastic: bool = False) -> Signs:
    return Signs(Dense(weight.clone(), Role.MATRIX), stochastic=stochastic)


def test_forward_is_a_product_of_integers() -> None:
    layer = nn.Linear(40, 8, bias=False)
    net = BinaryConnect(recover=QUICK).begin(layer)
    inputs = torch.randint(-9, 10, (16, 40))
    unit = float(layer.weight.detach().abs().mean().half())
    by_hand = inputs.numpy() @ (2 * (layer.weight.detach().numpy() >= 0).astype(int) - 1).T
    found = net(inputs.float()).detach() / unit
    assert torch.equal(found.round().long(), torch.from_numpy(by_hand))
    assert float((found - found.round()).abs().max()) < 1e-3
    finished = net.finish()
    assert torch.equal(finished(inputs.float()), net.model(inputs.float()))


def test_the_constant_is_the_best_for_the_signs() -> None:
    weight = torch.randn(6, 30)
    form = signs(weight).freeze()
    error = float((form.dense().detach() - weight).square().sum())
    best = min(float((c * weight.sign() - weight).square().sum()) for c in torch.linspace(0.3, 1.5, 1201).tolist())
    assert error <= best * (1 + 1e-5)


def test_stochastic_signs_have_the_mean_of_the_weight_and_rest_in_evaluation() -> None:
    latent = signs(torch.linspace(-1, 1, 9).repeat(2, 1), stochastic=True)
    mean = torch.stack([latent.dense().detach() for _ in range(4000)]).mean(0)
    wanted = latent.values.values.detach() * latent.unit
    assert float((mean - wanted).abs().max()) < 5 * float(latent.unit) / 4000**0.5
    latent.eval()
    assert torch.equal(latent.dense(), latent.freeze().dense())


def test_gradients_pass_and_steps_are_clipped() -> None:
    latent = signs(torch.tensor([[0.5, -0.5, 1.5, -1.5]]))
    upstream = torch.tensor([[1.0, 2.0, -3.0, 4.0]])
    (latent.dense() * upstream).sum().backward()
    gradient = latent.values.values.grad
    assert gradient is not None
    assert torch.allclose(gradient, upstream * latent.unit)
    with torch.no_grad():
        latent.values.values.add_(5)
    latent.step()
    assert torch.equal(latent.values.values, torch.ones(1, 4))


@pytest.mark.parametrize("stochastic", [False, True])
def test_training_learns(stochastic: bool) -> None:
    job = trained()
    after = BinaryConnect(recover=QUICK, stochastic=stochastic).apply(job)
    for site in selected_sites(job):
        assert isinstance(form_at(after.model, site), Binary)
        assert len(form_at(after.model, site).dense().unique()) == 2
    assert accuracy(after.model) > 0.75
    assert model_bits(after.model) < model_bits(job.model) / 4
    assert accuracy(job.model) > 0.9


def test_pruned_stays_pruned() -> None:
    pruned = MagnitudePruning(sparsity=0.5).apply(trained())
    after = BinaryConnect(recover=QUICK).apply(pruned)
    for before, now in zip(surgery.plain(pruned.model).parameters(), surgery.plain(after.model).parameters(), strict=True):
        if before.ndim > 1:
            assert torch.equal(before == 0, now == 0)
            assert len(now.unique()) == 3


def test_zeros_and_single_rows() -> None:
    for weight in (torch.zeros(3, 4), torch.randn(1, 4), torch.zeros(1, 1)):
        form = signs(weight).freeze()
        assert bool(torch.isfinite(form.dense()).all())
        assert bool(torch.isfinite(signs(weight).values.values).all())
    assert not signs(torch.zeros(3, 4)).freeze().dense().any()


def test_it_needs_training_data() -> None:
    job = job_of(network())
    bare = type(job)(model=job.model, reference=job.model, task=type(job.task)(calibration=job.task.calibration))
    with pytest.raises(DataError, match=r"binary-connect: .* has no training data"):
        chain(only(BinaryConnect(recover=QUICK), Where(layers=("0",)))).apply(bare)
