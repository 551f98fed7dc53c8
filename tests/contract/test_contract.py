"""The contract every method keeps, on every kind of model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from kogata.engines.lowering.copies import Copies
from kogata.engines.lowering.layers import Stack
from kogata.engines.lowering.lower import lower
from kogata.errors import DataError
from kogata.methods import METHODS, SVD, ChannelPruning, KMeans, MagnitudePruning, NeuronMerging, Shallower
from kogata.methods.base.compose import chain, only
from kogata.methods.base.method import Method
from kogata.network import surgery
from kogata.network.quantizers import Quantizer
from kogata.network.sites import form_of, sites_of
from kogata.storage.write import pack
from kogata.testing.comparisons import assert_untouched, snapshot, through_file
from kogata.testing.methods import CHECKS, refusal_says_why
from kogata.testing.models import MODELS, job_of
from tests.contract.cases import CASES, REFUSED, TRAINED
from tests.contract.subjects import applied, subject


def on_every_model(kinds: Iterable[type[Method]]) -> list[Any]:
    """Each method with each model that it can do something for; half precision cannot be trained."""
    return [
        pytest.param(kind, name, id=f"{kind.__name__}-{name}")
        for kind in kinds for name in MODELS
        if (kind, name) not in REFUSED and not (kind in TRAINED and name == "float16")
    ]  # fmt: skip


EVERY = on_every_model(METHODS)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_contract(kind: type[Method], name: str, check: str, tmp_path: Path) -> None:
    CHECKS[check](subject(kind), name, tmp_path)


@pytest.mark.parametrize("kind", [kind for kind in METHODS if (kind, "conv") not in REFUSED])
def test_the_default_dtype_changes_nothing(kind: type[Method]) -> None:
    job = job_of("conv")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        after = CASES[kind].apply(job)
    finally:
        torch.set_default_dtype(before)
    assert pack(after.model).data == subject(kind).trial("conv").file.data


def test_every_method_has_a_case() -> None:
    assert set(CASES) == set(METHODS)
    assert all(type(case) is kind for kind, case in CASES.items())


def test_names_are_unique() -> None:
    names = [kind.ABOUT.name for kind in METHODS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("kind", "name"), [pytest.param(*key, id=f"{key[0].__name__}-{key[1]}") for key in REFUSED])
def test_refusal_says_why(kind: type[Method], name: str) -> None:
    refusal_says_why(CASES[kind], name, REFUSED[kind, name])


@pytest.mark.parametrize("kind", [kind for kind in METHODS if kind not in (ChannelPruning, NeuronMerging, Shallower)])
def test_input_job_with_forms_is_untouched(kind: type[Method]) -> None:
    job = chain(only(SVD(rank=4), "hidden"), only(KMeans(clusters=4), "deep")).apply(job_of("conv"))
    model, reference, ledger = snapshot(job.model), snapshot(job.reference), job.ledger
    after = CASES[kind].apply(job)
    assert_untouched(job.model, model)
    assert_untouched(job.reference, reference)
    assert job.ledger == ledger
    assert after.ledger[: len(ledger)] == ledger


@pytest.mark.parametrize("kind", [kind for kind in METHODS if kind in TRAINED and (kind, "float16") not in REFUSED])
def test_float16_cannot_be_trained(kind: type[Method]) -> None:
    with pytest.raises(DataError, match=rf"{kind.ABOUT.name}.*: float16 weights cannot be trained"):
        CASES[kind].apply(job_of("float16"))


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_lowered_models_are_layers_of_pytorch(kind: type[Method], name: str) -> None:
    lowered = lower(applied(kind, name).model)
    homes = {module: type(module).__module__ for module in lowered.modules()}
    ours = [m for m, home in homes.items() if home.startswith("kogata") and not home.startswith("kogata.testing")]
    # quantizers of activations act in every engine too, and PyTorch has no layer that copies channels
    assert all(isinstance(module, Quantizer | Copies | Stack) for module in ours)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    job = MagnitudePruning(sparsity=0.5).apply(job_of("tied"))
    for model in (job.model, through_file(job, job.model, tmp_path)):
        site = next(site for site in sites_of(model) if site.aliases)
        assert (site.name, site.aliases) == ("embedding.weight", ("out.weight",))
        form = form_of(model.get_submodule("embedding"), "weight")
        assert form is form_of(model.get_submodule("out"), "weight")
        assert form is not None
        plain = surgery.plain(model)
        assert plain.get_parameter("embedding.weight") is plain.get_parameter("out.weight")
