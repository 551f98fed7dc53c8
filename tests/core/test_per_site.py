"""A plan for each site is one step: the first match wins, calibration runs once, what nothing matches is named."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

import kogata
from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.errors import NotApplicable, UsageError
from kogata.job import Job
from kogata.methods import (
    GPTQ,
    LSQ,
    OBD,
    SVD,
    ChannelPruning,
    Half,
    KMeans,
    MagnitudePruning,
    Recover,
    RoundToNearest,
    WhitenedSVD,
)
from kogata.methods.base.compose import chain, only, per_site
from kogata.methods.base.method import Method
from kogata.methods.base.order import check_order, planned_steps
from kogata.network import surgery
from kogata.network.sites import form_at, sites_of
from kogata.recipes.recipe import Recipe, parse
from kogata.testing.comparisons import assert_equal, weights


class Counted(nn.Sequential):
    """A stack of linear layers that counts its forwards, in all its copies together."""

    calls: ClassVar[Counter[str]] = Counter()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """One forward."""
        Counted.calls["forward"] += 1
        return super().forward(input)


def stack(layers: int, width: int = 12) -> Job:
    """A job of ``layers`` linear layers with names ``0`` to ``layers - 1``."""
    torch.manual_seed(0)
    model = Counted(*(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(layers))).eval()
    task = Task(calibration=[(torch.randn(16, width), torch.randn(16, width)) for _ in range(2)], loss=nn.functional.mse_loss)
    return prepare(model, task)


def forwards(method: Method, job: Job) -> int:
    """How often a method runs the model."""
    Counted.calls.clear()
    method.apply(job)
    return Counted.calls["forward"]


def test_24_methods_run_the_model_as_often_as_one() -> None:
    job = stack(24)
    plan = per_site({f"{n}.0": GPTQ(bits=3 + n % 2) for n in range(24)})
    assert forwards(plan, job) == forwards(GPTQ(bits=4), job) > 0


def test_equal_to_the_method_itself() -> None:
    job = stack(6)
    plan = per_site({f"{n}.*": GPTQ(bits=3) for n in range(6)})
    assert_equal(weights(plan.apply(job).model), weights(GPTQ(bits=3).apply(job).model))


def test_layers_are_encoded_on_what_the_layers_before_have_become() -> None:
    """A rounded layer whose method reads no inputs is rounded before the next one's inputs are looked at."""
    job = stack(3)
    plan = per_site({"0.*": RoundToNearest(bits=2), "*": GPTQ(bits=3)}).apply(job)
    rounded = only(RoundToNearest(bits=2), "0.*").apply(job)
    turn = only(GPTQ(bits=3), "[12].*").apply(rounded)
    assert_equal(weights(plan.model), weights(turn.model))
    apart = only(GPTQ(bits=3), "[12].*").apply(job)
    assert not torch.equal(weights(apart.model)["1.0.weight"], weights(plan.model)["1.0.weight"])


def test_each_method_has_its_own_statistics() -> None:
    job = stack(4)
    plan = {"0.*": OBD(sparsity=0.5), "1.*": WhitenedSVD(rank=2, correct=True), "2.*": KMeans(clusters=4)}
    found = weights(per_site(plan).apply(job).model)
    alone = weights(only(plan["0.*"], "0.*").apply(job).model)
    assert torch.equal(found["0.0.weight"], alone["0.0.weight"])
    after = only(plan["0.*"], "0.*").apply(job)
    assert torch.equal(found["2.0.weight"], weights(only(plan["2.*"], "2.*").apply(job).model)["2.0.weight"])
    x = [inputs for inputs, _ in job.task.calibration]  # type: ignore[union-attr]
    seen = [torch.tanh(nn.functional.linear(rows, found["0.0.weight"], found["0.0.bias"])) for rows in x]
    plain = weights(only(WhitenedSVD(rank=2), "1.*").apply(after).model)["1.0.weight"]
    dense = weights(job.model)
    kept = [torch.tanh(nn.functional.linear(rows, dense["0.0.weight"], dense["0.0.bias"])) for rows in x]

    def error(weight: torch.Tensor) -> float:
        return sum(float((a @ dense["1.0.weight"].T - b @ weight.T).square().sum()) for a, b in zip(kept, seen, strict=True))

    assert error(found["1.0.weight"]) < error(plain)  # it aimed at the outputs that the layer had before


def test_a_plan_of_thresholds_decides_for_each_entry_alone() -> None:
    job = stack(4)
    model = surgery.clone(job.model, share=False)
    with torch.no_grad():
        model.get_parameter("2.0.weight").mul_(100)
    job = prepare(model, job.task)
    entries = {"[01].*": MagnitudePruning(sparsity=0.5, scope="global"), "*": MagnitudePruning(sparsity=0.75, scope="global")}
    found = weights(per_site(entries).apply(job).model)
    apart = chain(only(entries["[01].*"], "[01].*"), only(entries["*"], "[23].*")).apply(job).model
    assert_equal(found, weights(apart))


def test_the_first_match_wins() -> None:
    job = per_site({"1.*": Half(), "[12].*": KMeans(clusters=4), "*": SVD(rank=2)}).apply(stack(4))
    forms = {site.name: form_at(job.model, site).describe() for site in sites_of(job.model)}
    assert [forms[f"{n}.0.weight"] for n in range(4)] == ["product", "dense", "codebook", "product"]
    assert {row.site: row.method for row in job.ledger}["1.0.weight"] == "half"


def test_what_no_glob_matches_is_named() -> None:
    job = per_site({"0.*": Half()}).apply(stack(2))
    notes = {row.site: row.note for row in job.ledger}
    assert notes == {"0.0.weight": "", "1.0.weight": "no glob of the plan matches it"}


@pytest.mark.parametrize(
    "method",
    [
        LSQ(bits=4, recover=Recover(epochs=1)),
        ChannelPruning(sparsity=0.5),
        chain(SVD(rank=2), Half()),
        MagnitudePruning(sparsity=0.5, rounds=2),
    ],
)
def test_methods_that_are_no_single_pass_are_refused(method: Method) -> None:
    with pytest.raises(UsageError, match=r"per_site: '0\.\*' asks for .*before or after the plan"):
        per_site({"1.*": Half(), "0.*": method})


def test_globs_that_decide_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="the plan is empty"):
        per_site({})
    for plan in ({"missing": Half(), "*": Half()}, {"*": Half(), "missing": Half()}):
        with pytest.raises(UsageError, match="'missing' decides about no weight"):
            per_site(plan).apply(stack(2))
    with pytest.raises(UsageError, match=r"'0\.\*' decides about no weight"):
        check_order(per_site({"*": Half(), "0.*": SVD(rank=2)}), stack(2))


def test_its_place_in_a_chain_is_checked() -> None:
    job = stack(2)
    plan = per_site({"0.*": SVD(rank=2), "1.*": KMeans(clusters=4)})
    check_order(chain(plan, RoundToNearest(bits=4)), job)
    with pytest.raises(NotApplicable, match="svd"):
        check_order(chain(KMeans(clusters=4), plan), job)
    assert planned_steps(plan, job) == [("svd + k-means", ["0.0.weight", "1.0.weight"])]


def test_a_run_has_one_step_and_its_recipe_reads_back(tmp_path: Path) -> None:
    job = stack(3)
    plan = per_site({"0.*": GPTQ(bits=3), "*": Half()})
    recipe = Recipe(name="plan", method=chain(plan))
    result = kogata.compress(job.model, job.task, recipe, output=tmp_path / "run", engine=None)
    assert [step.name for step in result.report.steps] == ["gptq + half"]
    again = parse((tmp_path / "run" / "recipe.yaml").read_text(encoding="utf-8"), "run")
    assert again.method == recipe.method
    with pytest.raises(UsageError, match="per-site"):
        parse("steps:\n- per-site: half", "text")
