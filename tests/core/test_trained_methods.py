"""Training methods: in a loop of one's own, as a step, resumed, and refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from kogata.errors import NotApplicable, UsageError
from kogata.forms import Binary, Latent
from kogata.forms.latent import narrowed, straight_through
from kogata.job import Where
from kogata.methods import LSQ, SVD, BinaryConnect, FixedPoint, KMeans, Recover, Ternary
from kogata.methods.base.compose import chain, only
from kogata.methods.base.trained import TrainingMethod
from kogata.network.sites import form_at, selected_sites, sites_of
from kogata.storage.write import pack
from tests.methods.training import QUICK, accuracy, examples, trained

METHODS: list[TrainingMethod] = [
    BinaryConnect(recover=QUICK), LSQ(bits=2, activations=3, recover=QUICK), FixedPoint(integer=4, fraction=8, recover=QUICK),
]  # fmt: skip


def test_straight_through_is_exact_and_has_the_other_gradient() -> None:
    values = torch.randn(1000, requires_grad=True)
    rounded = torch.randn(1000)
    out = straight_through(rounded, 3 * values)
    assert torch.equal(out, rounded)
    out.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, torch.full((1000,), 3.0))


def test_narrowed_scales_take_16_bits_where_they_can() -> None:
    scale = torch.tensor([0.1, 0.0, 1e-9, 1e9, -0.3])
    found = narrowed(scale)
    assert torch.equal(found[[0, 4]], scale[[0, 4]].half().float())
    assert torch.equal(found[1:4], scale[1:4])


@pytest.mark.parametrize("method", METHODS)
def test_a_loop_of_ones_own(method: TrainingMethod) -> None:
    job = trained()
    before = {name: tensor.clone() for name, tensor in job.model.state_dict().items()}
    inputs, targets = examples()
    net = method.begin(job.model)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(60):
        loss = functional.cross_entropy(net(inputs), targets) + net.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        net.step(progress=step / 60)
    wanted = net.eval()(inputs)
    model = net.finish()
    assert torch.equal(model(inputs), wanted)  # frozen numbers are those that were trained
    assert accuracy(model) > 0.75
    assert all(torch.equal(tensor, before[name]) for name, tensor in job.model.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_goes_on_to_the_same_bytes(method: TrainingMethod, tmp_path: Path) -> None:
    job = trained()
    whole = pack(method.apply(job).model).data
    calls = 0

    def validate(_: nn.Module) -> float:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        method.apply(replace(job, folder=tmp_path, task=replace(job.task, validate=validate)))
    resumed = method.apply(replace(job, folder=tmp_path, task=replace(job.task, validate=validate)))
    assert pack(resumed.model).data == whole


def test_it_cannot_be_saved_before_it_is_finished() -> None:
    net = LSQ(bits=2, activations=2, recover=QUICK).begin(trained().model)
    with pytest.raises(UsageError, match=r"still in training; call finish\(\)"):
        pack(net.model)
    latents = [form for site in sites_of(net.model) if isinstance(form := form_at(net.model, site), Latent)]
    assert len(latents) == 3


def test_the_ledger_says_what_was_left_alone() -> None:
    job = only(KMeans(clusters=4), "3").apply(trained())
    after = BinaryConnect(recover=replace(QUICK, epochs=1)).apply(job)
    notes = {row.site: row.note for row in after.ledger[len(job.ledger) :]}
    assert notes == {"0.weight": "", "3.weight": "it takes matrix or values, but earlier steps left table", "6.weight": ""}
    assert [row.bits_after < row.bits_before for row in after.ledger[len(job.ledger) :]] == [True, False, True]


def test_factors_of_a_product_are_trained() -> None:
    job = only(SVD(rank=4), "3").apply(trained())
    form = form_at(only(BinaryConnect(recover=QUICK), "3").apply(job).model, selected_sites(job)[1])
    assert form.describe() == "product(binary, binary)"


def test_only_some_layers_and_wrong_orders() -> None:
    job = trained()
    net = Ternary(recover=QUICK).begin(job.model, Where(layers=("3",)))
    assert [isinstance(form_at(net.model, site), Latent) for site in selected_sites(job)] == [False, True, False]
    with pytest.raises(NotApplicable, match="ternary: nothing to do"):
        Ternary(recover=QUICK).apply(chain(KMeans(clusters=3)).apply(job))


def test_distillation_needs_no_labels() -> None:
    job = trained()
    unlabelled = replace(job.task, train=[examples()[0]] * 4, loss=None)
    after = BinaryConnect(recover=Recover(epochs=4, learning_rate=1e-2)).apply(replace(job, task=unlabelled))
    assert isinstance(form_at(after.model, selected_sites(job)[0]), Binary)
    assert accuracy(after.model) > 0.5
