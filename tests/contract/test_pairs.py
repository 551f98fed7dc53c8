"""Every method after every kind of thing that a method leaves, and every method before one that encodes and one that trains.

A later step meets nothing of an earlier one but what that left: forms, quantizers, shapes. So methods that leave the same kind
of thing stand for one another. A pair composes, or is refused by name and reason; wrong orders are refused before anything
runs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kogata.errors import NotApplicable
from kogata.job import Job
from kogata.methods import METHODS, SVD, Half, KMeans, MagnitudePruning, Recover, RoundToNearest, Shallower
from kogata.methods.base.compose import chain
from kogata.methods.base.method import Method
from kogata.methods.base.order import check_order
from kogata.network.sites import form_at, sites_of
from kogata.testing.comparisons import (
    assert_equal,
    assert_structure_kept,
    assert_untouched,
    output,
    snapshot,
    through_file,
    weights,
)
from kogata.testing.models import job_of
from tests.contract.cases import CASES, FUTILE, ILLEGAL, REFUSED
from tests.contract.kinds import first_steps
from tests.contract.subjects import applied

AFTER_ALL = (RoundToNearest, Recover)


def illegal(first: type[Method], second: type[Method]) -> bool:
    return second in ILLEGAL.get(first, ())


@pytest.fixture(scope="module")
def job() -> Job:
    return job_of("conv")


@pytest.mark.parametrize("second", METHODS)
def test_second_step(second: type[Method], tmp_path: Path, subtests: pytest.Subtests) -> None:
    for first in METHODS if second in AFTER_ALL else first_steps():
        name = "stack" if Shallower in (first, second) else "conv"  # only the stack has layers to drop
        if (first, name) not in REFUSED:  # that it is refused, and why, is the contract's to test
            with subtests.test(first=first.__name__):
                check_pair(applied(first, name), first, second, tmp_path)


def check_pair(middle: Job, first: type[Method], second: type[Method], folder: Path) -> None:
    """``second`` keeps the contract on ``middle``, which ``first`` left, or refuses it with a reason."""
    before = snapshot(middle.model)
    if illegal(first, second) or (first, second) in FUTILE:
        with pytest.raises(NotApplicable) as caught:
            CASES[second].apply(middle)
        title, _, reason = str(caught.value).partition(":")
        assert title == second.ABOUT.name
        assert len(reason) > 20
    else:
        after = CASES[second].apply(middle)
        assert_structure_kept(middle.model, after.model)
        loaded = through_file(after, after.model, folder)
        assert_equal(weights(loaded), weights(after.model))
        assert torch.equal(output(middle, loaded), output(middle, after.model))
    assert_untouched(middle.model, before)


@pytest.mark.parametrize("first", METHODS)
def test_wrong_order_is_seen_before_anything_runs(first: type[Method], job: Job, subtests: pytest.Subtests) -> None:
    for second in METHODS:
        with subtests.test(second=second.__name__):
            both = chain(CASES[first], CASES[second])
            if illegal(first, second):
                with pytest.raises(NotApplicable) as caught:
                    check_order(both, job)
                assert str(caught.value).startswith(f"{second.ABOUT.name}: ")
            else:
                check_order(both, job)


@pytest.mark.parametrize("last", [m for m in METHODS if illegal(KMeans, m)])
@pytest.mark.parametrize("between", [Half, Recover])
def test_a_step_between_does_not_hide_a_wrong_order(between: type[Method], last: type[Method], job: Job) -> None:
    with pytest.raises(NotApplicable, match=f"^{last.ABOUT.name}: "):
        check_order(chain(CASES[KMeans], CASES[between], CASES[last]), job)


def test_the_longest_chain_composes(job: Job, tmp_path: Path) -> None:
    start = chain(CASES[SVD], MagnitudePruning(sparsity=0.4), CASES[Recover])
    with pytest.raises(NotApplicable, match="half precision holds its numbers exactly"):
        chain(start, RoundToNearest(bits=6), CASES[Half]).apply(job)  # the scales are half precision already
    after = chain(start, KMeans(clusters=6), CASES[Half]).apply(job)
    loaded = through_file(after, after.model, tmp_path)
    assert_equal(weights(loaded), weights(after.model))
    site = next(site for site in sites_of(after.model) if site.name == "hidden.weight")
    assert form_at(loaded, site).describe() == "product(masked(codebook), masked(codebook))"
    table = form_at(loaded, site).get_submodule("factors.0.values.table").get_parameter("values")
    assert torch.equal(table, table.half().float())
