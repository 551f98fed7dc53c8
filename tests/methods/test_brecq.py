"""BRECQ: a block of two layers against rounding to nearest, and against every pair of roundings of a tiny block."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kogata.calibration.batches import first_batch
from kogata.calibration.prepare import prepare
from kogata.errors import NotApplicable, UsageError
from kogata.forms import Affine
from kogata.job import Job, Task, Where
from kogata.methods import MagnitudePruning, RoundToNearest
from kogata.methods.base.compose import only
from kogata.methods.quantization import brecq
from kogata.methods.quantization.brecq import BRECQ
from kogata.network.batch import evaluating, output_error, tensors
from kogata.network.sites import form_at, form_of, selected_sites
from kogata.testing.comparisons import assert_near
from tests.methods.training import examples, job_of, refused_settings


class Block(nn.Module):
    """A residual block that works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Linear(16, 12)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x) + self.two(self.relu(self.norm(self.one(x))))


def job() -> Job:
    torch.manual_seed(7)
    return job_of(nn.Sequential(nn.Linear(12, 12), Block(), Block(), nn.Linear(12, 3)))


def outputs(model: nn.Module, name: str) -> Tensor:
    """What a module of the model gives on the calibration data."""
    found: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _, __, output: found.append(output.clone()))
    with evaluating(model):
        model(examples()[0][:64])
    handle.remove()
    return found[0]


def test_blocks_are_closer_than_rounding_to_nearest() -> None:
    before = job()
    learnt = BRECQ(bits=3, blocks=("1", "2"), iterations=600).apply(before)
    nearest = only(RoundToNearest(bits=3), Where(layers=("1.*", "2.*"))).apply(before)
    assert learnt.renewed == nearest.renewed == ("1.norm", "2.norm")

    def closer(name: str) -> bool:
        wanted = outputs(before.model, name)
        ours, plain = (float(output_error(outputs(j.model, name), wanted)) for j in (learnt, nearest))
        return ours < 0.9 * plain

    assert closer("2")
    for name, tensor in before.model.named_buffers():  # the rounding is learnt with the statistics as they were
        owner, _, key = name.rpartition(".")
        for j in (learnt, nearest):
            setattr(j.model.get_submodule(owner), key, tensor)
    assert closer("1")
    assert closer("2")
    forms = {site.name: form_at(learnt.model, site) for site in selected_sites(before)}
    assert [isinstance(form, Affine) for form in forms.values()] == [False, True, True, True, True, False]
    notes = {row.site: row.note for row in learnt.ledger}
    assert notes["0.weight"] == "it is in none of the blocks"
    assert all(parameter.requires_grad for parameter in learnt.model.parameters() if parameter.numel())
    assert before.model.training == learnt.model.training


def test_a_block_learns_on_the_inputs_that_rounded_blocks_give(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Tensor] = []

    class Watched(brecq._Pairs):  # pyright: ignore[reportPrivateUsage]
        def __init__(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            super().__init__(inputs, outputs)
            given.extend(tensors(inputs[0]))

    monkeypatch.setattr(brecq, "_Pairs", Watched)
    before = job()
    after = BRECQ(bits=2, blocks=("1", "2"), iterations=1).apply(before)
    _, second = given
    inputs = first_batch(before.reference, before.task)[0]
    with evaluating(after.model):
        rounded = after.model.get_submodule("1")(after.model.get_submodule("0")(inputs))
    assert_near(second, rounded, 1e-5)


def test_a_layer_alone_comes_close_to_the_best_of_all_roundings() -> None:
    torch.manual_seed(2)
    inputs = torch.randn(64, 8) @ torch.randn(8, 8)
    model = nn.Sequential(nn.Linear(8, 1))
    job = prepare(model, Task(calibration=[inputs[:32], inputs[32:]]))
    learnt = BRECQ(bits=2, blocks=("0",), iterations=600).apply(job).model
    form = form_of(learnt.get_submodule("0"), "weight")
    assert isinstance(form, Affine)
    weight, scale = model[0].get_parameter("weight").detach(), form.scale.dense().detach()
    down = (weight / scale + form.zero).floor()
    codes = (torch.tensor(list(itertools.product((0.0, 1.0), repeat=8))) + down).clamp(0, 3)
    every = ((codes - form.zero) * scale - weight) @ inputs.T
    nearest = RoundToNearest(bits=2).apply(job).model
    wanted = model(inputs).detach()
    ours, plain = (float((m(inputs) - wanted).detach().square().mean()) for m in (learnt, nearest))
    best = float(every.square().mean(1).min())
    assert best * (1 - 1e-4) <= ours <= plain
    assert plain - ours > 0.6 * (plain - best)


def test_what_is_not_a_matrix_is_refused() -> None:
    pruned = MagnitudePruning(sparsity=0.5).apply(job())
    with pytest.raises(NotApplicable, match="earlier steps left values"):
        BRECQ(bits=4, blocks=("1",)).apply(pruned)


@pytest.mark.parametrize(("blocks", "reason"), [(("x*",), "match no module"), (("1", "1.one"), "within it, 1.one")])
def test_blocks_must_be_found_and_apart(blocks: tuple[str, ...], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        BRECQ(bits=4, blocks=blocks).apply(job())


@pytest.mark.parametrize("settings", [{"bits": 0}, {"bits": 9}, {"bits": 4, "iterations": 0}])
def test_settings_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="brecq: "):
        refused_settings(BRECQ, blocks=("*",), **settings)
