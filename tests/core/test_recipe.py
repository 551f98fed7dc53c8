"""Recipes and targets: what is allowed reads back the same, what is not is named beside what is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from kogata.errors import UsageError
from kogata.job import Kind, Where
from kogata.methods import METHODS, SVD, Half, KMeans, MagnitudePruning, RateOBS, Recover, RoundToNearest
from kogata.methods.base.compose import chain, only
from kogata.methods.base.method import Method
from kogata.recipes import targets
from kogata.recipes.budgets import budget, with_goal
from kogata.recipes.recipe import Recipe, built_in, open_recipe, parse
from tests.contract.cases import CASES

FULL = """
name: everything
about: every way of writing a step
targets: {size: 1/20, drop: 0.5pt, latency: 60%}
steps:
  - method: svd
    rank: 0.25
    where: hidden
  - method: magnitude
    sparsity: 0.9
    scope: global
    rounds: 3
    recover: {epochs: 2, learning_rate: 1.0e-3}
    where: [conv*, hidden]
  - {method: recover, epochs: 5, patience: 2}
  - method: round-to-nearest
    bits: 4
    group: 32
    where: {layers: "*", ignore: out, kinds: [linear, conv]}
  - method: half
    where: {vectors: true}
"""


def test_yaml_is_the_python_chain() -> None:
    assert parse(FULL, "test").method == chain(
        only(SVD(rank=0.25), "hidden"),
        only(
            MagnitudePruning(sparsity=0.9, scope="global", rounds=3, recover=Recover(epochs=2, learning_rate=1e-3)),
            Where(layers=("conv*", "hidden")),
        ),
        Recover(epochs=5, patience=2),
        only(RoundToNearest(bits=4, group=32), Where(ignore=("out",), kinds=(Kind.LINEAR, Kind.CONV))),
        only(Half(), Where(vectors=True)),
    )  # fmt: skip


def test_a_resolved_recipe_reads_back_the_same() -> None:
    recipe = parse(FULL, "test")
    text = yaml.safe_dump(_plain(recipe.resolved()), sort_keys=False)
    again = parse(text, "again")
    assert again == recipe
    assert again.resolved() == recipe.resolved()


def _plain(value: Any) -> Any:
    """As a recipe file writes it: enumerations as their text, tuples as lists."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, str) else value


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_has_settings_that_read_back(kind: type[Method]) -> None:
    text = yaml.safe_dump({"steps": [_plain(CASES[kind].settings())]})
    assert parse(text, "test").method == chain(CASES[kind])


def test_one_method_resolves_to_one_step() -> None:
    resolved = Recipe(name="x", method=KMeans(clusters=4)).resolved()
    assert resolved["steps"] == [{"method": "k-means", "clusters": 4}]


def test_a_goal_takes_the_place_of_that_of_the_recipe() -> None:
    found = budget(20_000).resolved()
    assert found["steps"][-1] | {"damping": 0, "data": 0, "rate": 0} == {
        "method": "rate-obs", "slope": None, "bytes": 20_000, "drop": None, "rate": 0, "damping": 0, "data": 0,
    }  # fmt: skip
    assert found["targets"] == {"size": "20000B"}
    inner = "name: inner\nsteps:\n  - {method: rate-obs, slope: 1.0e-4, damping: 0.1, where: out}"
    steps = with_goal(parse(inner, "inner"), RateOBS(drop="2pt")).resolved()["steps"]
    assert (steps[0]["slope"], steps[0]["drop"], steps[0]["damping"]) == (None, "2pt", 0.1)
    assert steps[0]["where"] == {"layers": ["out"]}
    with pytest.raises(UsageError, match="expected one step rate-obs"):
        with_goal(open_recipe("4-bit"), RateOBS(drop="2pt"))


@pytest.mark.parametrize("name", built_in())
def test_built_in_recipes_are_valid(name: str) -> None:
    recipe = open_recipe(name)
    assert recipe.about
    assert parse(yaml.safe_dump(_plain(recipe.resolved())), name).method == recipe.method


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "steps: [{method: k-means, cluster: 4}]",
            ("step 1 (k-means)", "'cluster'", "clusters", "did you mean 'clusters'"),
        ),
        ("step: []", ("'step'", "did you mean 'steps'")),
        ("steps: [{method: kmeans, clusters: 4}]", ("step 1", "'kmeans'", "did you mean 'k-means'")),
        ("steps: [{method: half}, {method: 7}]", ("step 2", "7", "half")),
        ("steps: [{method: k-means}]", ("step 1 (k-means)", "clusters must be given")),
        ("steps: [{method: k-means, clusters: many}]", ("clusters is 'many'", "integer")),
        ("steps: [{method: k-means, clusters: 4.5}]", ("clusters is 4.5", "integer")),
        ("steps: [{method: k-means, clusters: [4]}]", ("clusters is [4]", "integer")),
        ("steps: [{method: k-means, clusters: 0}]", ("clusters is 0", "expected 1")),
        ("steps: [{method: magnitude, sparsity: 0.5, scope: all}]", ("scope is 'all'", "'layer', 'global' or 'lamp'")),
        (
            "steps: [{method: magnitude, sparsity: 0.5, recover: {epoch: 3}}]",
            ("step 1 (magnitude): recover", "'epoch'", "epochs"),
        ),
        ("steps: [{method: magnitude, sparsity: 0.5, recover: {epochs: x}}]", ("recover: epochs is 'x'",)),
        ("steps: [{method: magnitude, sparsity: 0.5, recover: 3}]", ("recover is 3",)),
        ("steps: [{method: half, where: {layer: a}}]", ("step 1 (half): where", "'layer'", "layers")),
        ("steps: [{method: half, where: {kinds: [lstm]}}]", ("kinds", "'linear', 'conv', 'embedding' or 'other'")),
        ("steps: [{method: half, where: 3}]", ("where", "3", "glob")),
        ("steps: [half]", ("step 1", "'method'", "'half'")),
        ("steps: half", ("steps must be a list",)),
        ("steps: []", ("at least one step",)),
        ("name: x", ("steps must be a list",)),
        ("- method: half", ("expected a mapping", "steps")),
        ("a: [", ("is not YAML",)),
        ("steps: !!python/object/apply:os.getcwd []", ("is not YAML",)),
        ("targets: {size: 3}\nsteps: [{method: half}]", ("targets: size", "'3'", "20kB")),
        ("targets: {weight: 3kB}\nsteps: [{method: half}]", ("'weight'", "size, drop, latency")),
        ("targets: small\nsteps: [{method: half}]", ("targets",)),
    ],
)
def test_errors_name_the_place_and_what_is_allowed(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, "my.yaml")
    message = str(caught.value)
    for word in words:
        assert word in message
    assert "\n" not in message


def test_recipes_by_name_and_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'deep-compresion' is unknown; did you mean 'deep-compression'"):
        open_recipe("deep-compresion")
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        open_recipe(str(tmp_path / "none.yaml"))
    (tmp_path / "mine.yaml").write_text("steps: [{method: half}]", encoding="utf-8")
    assert open_recipe(str(tmp_path / "mine.yaml")) == Recipe(name="mine", method=chain(Half()))


@pytest.mark.parametrize(
    ("goal", "text", "value", "relative"),
    [
        ("size", "20kB", 20e3, False), ("size", "1.5 MB", 1.5e6, False), ("size", "700B", 700, False),
        ("size", "2GB", 2e9, False),
        ("size", "1/20", 1 / 20, True), ("size", "5%", 0.05, True), ("size", "2.5 %", 0.025, True),
        ("drop", "0.5pt", 0.5, False), ("drop", "0 pt", 0, False),
        ("latency", "3ms", 3, False), ("latency", "1/2", 0.5, True), ("latency", "60%", 0.6, True),
    ],
)  # fmt: skip
def test_targets(goal: str, text: str, value: float, relative: bool) -> None:
    (target,) = targets.parse({goal: text})
    assert (target.goal, target.value, target.relative, target.text) == (goal, pytest.approx(value), relative, text)


@pytest.mark.parametrize(
    ("goal", "text"),
    [
        ("size", "20"), ("size", "20ms"), ("size", "20kb"), ("size", "-3kB"), ("size", ""), ("size", "1/0"), ("size", "1e3B"),
        ("drop", "1%"), ("drop", "1/2"), ("drop", "0.5"), ("drop", "-1pt"), ("latency", "3s"), ("latency", "3pt"),
        ("latency", "fast"), ("size", "3kB or so"),
    ],
)  # fmt: skip
def test_targets_that_cannot_be_read(goal: str, text: str) -> None:
    with pytest.raises(UsageError, match=rf"targets: {goal}: .* cannot be read; write it such as"):
        targets.parse({goal: text})


def side(size: int, score: float | None, milliseconds: float | None) -> Any:
    latency = None if milliseconds is None else SimpleNamespace(p50=milliseconds)
    return SimpleNamespace(bytes=size, score=score, latency_ms=latency)


@pytest.mark.parametrize(
    ("goal", "text", "missed"),
    [
        ("size", "100B", False), ("size", "99B", True), ("size", "1/10", False), ("size", "9%", True),
        ("drop", "0.5pt", False), ("drop", "0.4pt", True), ("latency", "3ms", False), ("latency", "2.9ms", True),
        ("latency", "1/2", False), ("latency", "49%", True),
    ],
)  # fmt: skip
def test_targets_are_met_at_the_limit(goal: str, text: str, missed: bool) -> None:
    report = cast("Any", SimpleNamespace(dense=side(1000, 99.0, 6.0), compressed=side(100, 98.5, 3.0), delta=2.0))
    (target,) = targets.parse({goal: text})
    found = target.miss(report)
    assert (found is not None) == missed
    if found is not None:
        assert goal in found
        assert text in found


@pytest.mark.parametrize(("goal", "text"), [("drop", "1pt"), ("latency", "1ms")])
def test_what_was_not_measured_is_missed(goal: str, text: str) -> None:
    report = cast("Any", SimpleNamespace(dense=side(1000, None, None), compressed=side(100, None, None), delta=None))
    assert targets.parse({goal: text})[0].miss(report)
