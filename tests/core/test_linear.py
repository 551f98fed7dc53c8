"""Cost grows with the number of layers: four times the layers, four times the calls, whatever is called."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import CodeType, FrameType
from typing import Any

import pytest
import torch
from torch import nn

import kogata
from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.job import Job
from kogata.methods import GPTQ, SVD, Half, KMeans, MagnitudePruning, RoundToNearest
from kogata.methods.base.compose import per_site
from kogata.methods.base.method import Method
from kogata.network.sites import sites_of

FEW, MANY = 24, 72  # more layers than the report lists one by one
SLACK = 1.15


def stack(layers: int) -> nn.Module:
    """Small linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(layers))).eval()


def calls(run: Callable[[], object]) -> Counter[CodeType]:
    """How often ``run`` enters each function of Kogata; each step of a generator counts."""
    found = Counter[CodeType]()

    def count(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and "kogata" in frame.f_code.co_filename:
            found[frame.f_code] += 1

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found


METHODS = [
    RoundToNearest(bits=4), KMeans(clusters=4), MagnitudePruning(sparsity=0.5, scope="global"), GPTQ(bits=4), SVD(rank=2),
]  # fmt: skip


def compressed(layers: int, method: Method) -> Counter[CodeType]:
    """The calls of the whole of compress: the step, its checkpoint, the file, what is read back, the report."""
    model, task = stack(layers), Task(calibration=[torch.randn(4, 16)])
    return calls(lambda: kogata.compress(model, task, method, engine=None))


def steeper(few: Counter[CodeType], many: Counter[CodeType]) -> dict[str, tuple[int, int]]:
    """The functions whose calls have grown faster than the number of layers."""
    return {
        f"{code.co_filename}:{code.co_firstlineno} {code.co_qualname}": (few[code], count)
        for code, count in many.items() if count > SLACK * MANY / FEW * few[code] + MANY
    }  # fmt: skip


@pytest.mark.parametrize("method", [METHODS[0], METHODS[2], METHODS[3]], ids=Method.title)
def test_calls_grow_with_layers(method: Method) -> None:
    compressed(FEW, method)  # imports and compiles
    assert steeper(compressed(FEW, method), compressed(MANY, method)) == {}


def test_so_do_those_of_a_plan_with_an_entry_for_each_layer() -> None:
    few, many = (compressed(n, per_site({f"{k}.0": Half() for k in range(n)})) for n in (FEW, MANY))
    assert steeper(few, many) == {}


@pytest.mark.parametrize("method", METHODS, ids=Method.title)
def test_the_sites_are_listed_a_fixed_number_of_times(method: Method) -> None:
    few, many = (calls(partial(method.apply, job_of(n)))[sites_of.__code__] for n in (FEW, MANY))
    assert 0 < few == many < 4


def job_of(layers: int) -> Job:
    """A job with so many layers."""
    return prepare(stack(layers), Task(calibration=[torch.randn(4, 16)]))
