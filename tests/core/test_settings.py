"""Ranges of settings: what lies outside is refused by name and with what is allowed, what lies at the ends is not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from torch import nn

from kogata.errors import UsageError
from kogata.methods import GPTQ, METHODS, SVD, Fire, FixedPoint, MagnitudePruning, Monarch, RateOBS, Recover, SparseGPT, Wanda
from kogata.settings import Range, alternatives, described, refusal
from kogata.tasks.made import Mixup, Noise, Synthesis
from kogata.training.loop import Training
from kogata.training.teachers.posterior import Sampling
from kogata.training.terms import TERMS, Labels, SumOfTerms, Term
from kogata.training.terms.base import LayerTerm
from tests.contract.cases import CASES

LAYERS = {"student": ("a",), "teacher": ("b",)}


def term_case(kind: type[Term]) -> Term:
    if kind is SumOfTerms:
        return SumOfTerms(terms=(Labels(),))
    return kind(**LAYERS) if issubclass(kind, LayerTerm) else kind()  # type: ignore[arg-type]


EVERY: Mapping[type[Any], tuple[Any, str]] = {
    **{kind: (CASES[kind], kind.ABOUT.name) for kind in METHODS},
    **{kind: (term_case(kind), f"term {kind.term}") for kind in TERMS},
    Training: (Training(epochs=1), "training"),
    Sampling: (Sampling(samples=1, step=0.1), "posterior"),
    Synthesis: (Synthesis(), "synthesis"),
    Mixup: (Mixup(batches=[], teacher=nn.Identity()), "mixup"),
    Noise: (Noise(teacher=nn.Identity(), shape=(2, 3), count=1), "noise"),
}  # fmt: skip

# Conditions between fields, which the ends of one field may break.
TOGETHER = {
    (SparseGPT, "group"), (FixedPoint, "integer"), (FixedPoint, "fraction"), (RateOBS, "bytes"), (RateOBS, "drop"),
}  # fmt: skip
ANY_NUMBER = {("SoftTargets", "axis"), ("Noise", "mean"), ("Synthesis", "bounds"), ("SparseGPT", "pattern")}


def ranges_of(kind: type[Any]) -> Iterator[tuple[str, type, Range]]:
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        for hint in alternatives(hints[field.name]):
            if get_origin(hint) is Annotated:
                inner, *parts = get_args(hint)
                yield from ((field.name, inner, part) for part in parts if isinstance(part, Range))


def outside(inner: type, bound: Range) -> Iterator[Any]:
    below = bound.gt if bound.ge is None else bound.ge - 1 if inner is int else math.nextafter(bound.ge, -math.inf)
    above = bound.lt if bound.le is None else bound.le + 1 if inner is int else math.nextafter(bound.le, math.inf)
    yield from (inner(value) for value in (below, above) if value is not None)
    yield from (math.nan, math.inf, -math.inf, "1", True, [1], {})


def ends(inner: type, bound: Range) -> Iterator[Any]:
    low = bound.ge if bound.gt is None else bound.gt + 1 if inner is int else math.nextafter(bound.gt, math.inf)
    high = bound.le if bound.lt is None else bound.lt - 1 if inner is int else math.nextafter(bound.lt, -math.inf)
    yield from (inner(value) for value in (low, high) if value is not None)


def refused(case: Any, name: str, value: Any) -> str:
    """Why the case cannot have this setting; empty when it can."""
    try:
        dataclasses.replace(case, **{name: value})
    except UsageError as error:
        return str(error)
    return ""


BOUNDED = [
    pytest.param(kind, *found, id=f"{kind.__name__}-{found[0]}-{found[1].__name__}")
    for kind in EVERY for found in ranges_of(kind)
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "inner", "bound"), BOUNDED)
def test_just_outside_is_refused_and_the_ends_are_not(kind: type[Any], name: str, inner: type, bound: Range) -> None:
    case, title = EVERY[kind]
    for value in outside(inner, bound):
        with pytest.raises(UsageError) as caught:
            dataclasses.replace(case, **{name: value})
        assert str(caught.value).startswith(f"{title}: {name} is {value!r}; expected ")
        assert bound.words() in str(caught.value)
    for value in ends(inner, bound):
        problem = refused(case, name, value)
        assert problem == "" or ((kind, name) in TOGETHER and bound.words() not in problem)


@pytest.mark.parametrize("kind", EVERY)
def test_every_number_has_a_range(kind: type[Any]) -> None:
    bounded = {name for name, *_ in ranges_of(kind)} | {"keep", "shape"}  # bounded within a tuple
    numbers = {setting.name for setting in described(kind) if "number" in setting.type}
    assert {(kind.__name__, name) for name in numbers - bounded} <= ANY_NUMBER


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GPTQ(bits=9), "gptq: bits is 9; expected 1 to 8."),
        (lambda: GPTQ(bits=4.0), "gptq: bits is 4.0; expected 1 to 8 (a whole number)."),  # type: ignore[arg-type]
        (lambda: GPTQ(bits=4, group=0), "gptq: group is 0; expected 1 or more, or null."),
        (lambda: GPTQ(bits=4, symmetric=1), "gptq: symmetric is 1; expected true or false."),  # type: ignore[arg-type]
        (lambda: Wanda(sparsity=1.0), "wanda: sparsity is 1.0; expected 0 to below 1, such as 0.9."),
        (lambda: Wanda(sparsity=math.nan), "wanda: sparsity is nan; expected 0 to below 1, such as 0.9 (a number)."),
        (lambda: SVD(rank=1.5), "svd: rank is 1.5; expected 1 or more (a whole number), or above 0 and below 1 (a number)."),
        (lambda: Fire(squeeze=2, share=0), "fire: share is 0; expected above 0 and below 1, such as 0.5."),
        (lambda: Monarch(residual=-1), "monarch: residual is -1; expected 0 or more."),
        (
            lambda: MagnitudePruning(sparsity=0.5, scope="all"),  # type: ignore[arg-type]
            "magnitude: scope is 'all'; expected 'layer', 'global' or 'lamp'.",
        ),
        (lambda: Recover(epochs=0), "recover: epochs is 0; expected 1 or more."),
        (lambda: Labels(weight=math.inf), "term labels: weight is inf; expected 0 or more."),
        (lambda: Synthesis(bounds=(1.0, 0.0)), "synthesis: bounds is (1.0, 0.0); expected the lower one first."),
    ],
)
def test_messages(make: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert str(caught.value) == message


def test_types_are_looked_into() -> None:
    @dataclasses.dataclass
    class Pair:
        ends: tuple[Annotated[int, Range(ge=0)], Annotated[int, Range(ge=0)]]
        names: tuple[str, ...] = ()

    # the class is local, but its types are not
    assert refusal(Pair((0, 1), ("a",))) == ""
    assert refusal(Pair((0, 1, 2))) == "ends is (0, 1, 2); expected a tuple (0 or more, 0 or more)."  # type: ignore[arg-type]
    assert refusal(Pair((0, -1))).startswith("ends is (0, -1); expected ")
    assert refusal(Pair((0, 1), "ab")) == "names is 'ab'; expected a tuple (a text, ...)."  # type: ignore[arg-type]
    assert refusal(Pair((0, 1), ("a", 2))).startswith("names is ('a', 2)")  # type: ignore[arg-type]
