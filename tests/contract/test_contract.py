"""The contract every method keeps, on every kind of model."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from kogata import artifact, surgery
from kogata.activations import Quantizer, quantizers
from kogata.errors import DataError, NotApplicable
from kogata.forms.copies import Copies
from kogata.forms.layers import Stack
from kogata.job import Job
from kogata.method import Method, WeightMethod, chain, only
from kogata.methods import METHODS, SVD, ChannelPruning, KMeans, MagnitudePruning, NeuronMerging, Recover, Shallower
from tests.contract.cases import CASES, REFUSED, TRAINED
from tests.contract.checks import (
    assert_equal,
    assert_near,
    assert_structure_kept,
    assert_untouched,
    batch_of,
    output,
    snapshot,
    through_file,
    weights,
)
from tests.contract.models import MODELS, job_of
from tests.contract.trial import applied, trial


def on_every_model(kinds: Iterable[type[Method]], *left_out: str) -> list[Any]:
    """Each method with each model that it can do something for; half precision cannot be trained."""
    return [
        pytest.param(kind, name, id=f"{kind.__name__}-{name}")
        for kind in kinds for name in MODELS
        if (kind, name) not in REFUSED and not (kind in TRAINED and name == "float16") and name not in left_out
    ]  # fmt: skip


EVERY = on_every_model(METHODS)
WEIGHTS = on_every_model(kind for kind in METHODS if issubclass(kind, WeightMethod))


@cache
def plain_job(name: str) -> Job:
    return job_of(name)


def replaced(job: Job) -> list[str]:
    """The sites that the last step put a form into, or otherwise changed; those that are gone are not among them."""
    left = {site.name for site in surgery.sites(job.model)}
    return [row.site for row in job.ledger if not row.note and row.site in left]


def test_every_method_has_a_case() -> None:
    assert set(CASES) == set(METHODS)
    assert all(type(case) is kind for kind, case in CASES.items())


def test_names_are_unique() -> None:
    names = [kind.ABOUT.name for kind in METHODS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("kind", "name"), [pytest.param(*key, id=f"{key[0].__name__}-{key[1]}") for key in REFUSED])
def test_refusal_says_why(kind: type[Method], name: str) -> None:
    with pytest.raises(NotApplicable, match=REFUSED[kind, name]) as caught:
        CASES[kind].apply(plain_job(name))
    assert kind.ABOUT.name in str(caught.value)


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_input_job_is_untouched(kind: type[Method], name: str) -> None:
    tried = trial(kind, name)
    assert_untouched(tried.given.model, tried.model)
    assert_untouched(tried.given.reference, tried.reference)
    assert tried.given.ledger == ()


@pytest.mark.parametrize("kind", [kind for kind in METHODS if kind not in (ChannelPruning, NeuronMerging, Shallower)])
def test_input_job_with_forms_is_untouched(kind: type[Method]) -> None:
    job = chain(only(SVD(rank=4), "hidden"), only(KMeans(clusters=4), "deep")).apply(job_of("conv"))
    model, reference, ledger = snapshot(job.model), snapshot(job.reference), job.ledger
    after = CASES[kind].apply(job)
    assert_untouched(job.model, model)
    assert_untouched(job.reference, reference)
    assert job.ledger == ledger
    assert after.ledger[: len(ledger)] == ledger


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_same_job_same_bytes(kind: type[Method], name: str) -> None:
    again = CASES[kind].apply(job_of(name))
    assert artifact.pack(applied(kind, name).model).data == artifact.pack(again.model).data


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_becomes_smaller(kind: type[Method], name: str) -> None:
    if not issubclass(kind, WeightMethod):
        scales = [quantizer for _, quantizer in quantizers(applied(kind, name).model)]  # they cost a number each
        assert surgery.bits(applied(kind, name).model) <= surgery.bits(plain_job(name).model) + 32 * len(scales)
        return
    job = applied(kind, name)
    assert surgery.bits(job.model) < surgery.bits(plain_job(name).model)
    assert replaced(job)
    for row in job.ledger:
        assert (row.bits_after < row.bits_before) == (not row.note)
    before, after = (len(artifact.pack(j.model).data) for j in (plain_job(name), job))
    assert after < before


@pytest.mark.parametrize(("kind", "name"), WEIGHTS)
def test_ledger_predicts_the_error_of_the_weight(kind: type[Method], name: str) -> None:
    job = applied(kind, name)
    before, after = weights(plain_job(name).model), weights(job.model)
    for row in job.ledger:
        if not row.note:
            w, error = before[row.site].double(), after[row.site].double() - before[row.site].double()
            narrow = 1e-5 if before[row.site].dtype == torch.float32 else 2e-2  # the layer rounds once more
            assert row.predicted == pytest.approx(float(error.square().sum() / w.square().sum()), rel=narrow, abs=1e-4)
            assert row.loss is not None
        else:
            assert torch.equal(before[row.site], after[row.site])


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_file_gives_back_every_bit(kind: type[Method], name: str, tmp_path: Path) -> None:
    job = applied(kind, name)
    loaded = through_file(job, job.model, tmp_path)
    assert_equal(weights(loaded), weights(job.model))
    assert_equal(surgery.plain(loaded).state_dict(), surgery.plain(job.model).state_dict())
    wanted = output(job, job.model)
    assert torch.equal(output(job, loaded), wanted)
    assert artifact.pack(loaded).data == artifact.pack(job.model).data


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_state_dict_round_trip(kind: type[Method], name: str) -> None:
    model = applied(kind, name).model
    twin = surgery.clone(model, share=False)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.load_state_dict(model.state_dict())
    assert_equal(weights(twin), weights(model))


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_step_of_training_changes_every_replaced_weight(kind: type[Method], name: str) -> None:
    job = applied(kind, name)
    model = surgery.clone(job.model, share=False).train()
    before = weights(model)
    inputs, targets = batch_of(job)
    loss = torch.nn.functional.cross_entropy(model(inputs).float(), targets)
    loss.backward()
    sites = {site.name: site for site in surgery.sites(model)}
    for site in replaced(job):
        leaves = [leaf.values for _, leaf in surgery.form_at(model, sites[site]).leaves()]
        assert any(leaf.grad is not None and float(leaf.grad.abs().max()) > 0 for leaf in leaves), site
    torch.optim.SGD(model.parameters(), lr=10.0).step()
    after = weights(model)
    for site in replaced(job):
        assert not torch.equal(before[site], after[site]), site
    assert_equal(weights(job.model), before)


@pytest.mark.parametrize("kind", [kind for kind in METHODS if kind in TRAINED and (kind, "float16") not in REFUSED])
def test_float16_cannot_be_trained(kind: type[Method]) -> None:
    with pytest.raises(DataError, match=rf"{kind.ABOUT.name}.*: float16 weights cannot be trained"):
        CASES[kind].apply(plain_job("float16"))


@pytest.mark.parametrize(("kind", "name"), on_every_model(METHODS, "float16"))
def test_recovery_keeps_the_structure(kind: type[Method], name: str) -> None:
    job = applied(kind, name)
    after = Recover(epochs=2, learning_rate=1e-2).apply(job)
    assert_structure_kept(job.model, after.model)
    for site in surgery.sites(job.model):
        assert surgery.form_at(job.model, site).describe() == surgery.form_at(after.model, site).describe()


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_plain_and_lowered_models_are_plain_and_equal(kind: type[Method], name: str) -> None:
    job = applied(kind, name)
    wanted = output(job, job.model)
    tolerance = 1e-5 if name not in ("float16", "bfloat16") else 3e-2
    for model in (surgery.plain(job.model), surgery.lower(job.model)):
        assert_near(output(job, model), wanted, tolerance)
        ours = [module for module in model.modules() if type(module).__module__.startswith("kogata")]
        # what flows is quantized in every engine too, and copies of outputs have no layer of PyTorch's own
        assert all(isinstance(module, Quantizer | Copies | Stack) for module in ours)
        assert not any(hasattr(module, "parametrizations") for module in model.modules())


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    job = MagnitudePruning(sparsity=0.5).apply(job_of("tied"))
    for model in (job.model, through_file(job, job.model, tmp_path)):
        site = next(site for site in surgery.sites(model) if site.aliases)
        assert (site.name, site.aliases) == ("embedding.weight", ("out.weight",))
        form = surgery.form_of(model.get_submodule("embedding"), "weight")
        assert form is surgery.form_of(model.get_submodule("out"), "weight")
        assert form is not None
        plain = surgery.plain(model)
        assert plain.get_parameter("embedding.weight") is plain.get_parameter("out.weight")
