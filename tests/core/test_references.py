"""Recipes that name classes of other packages: what works reads back, and what does not says what to do."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from kogata.errors import UsageError
from kogata.methods import SVD
from kogata.methods.base.compose import Chain, Only, chain
from kogata.recipes.recipe import parse

HEAD = """
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any

import torch

from kogata.methods import Recover
from kogata.methods.base.method import About, Method
from kogata.settings import Range
from kogata.training.terms import Term
from kogata.training.terms.base import Formula

ABOUT = About(name="mine", family="pruning", summary="nothing", paper="none")
"""
METHOD = """
@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    amount: Annotated[float, Range(gt=0, lt=1)]
    names: tuple[str, ...] = ()
    recover: Recover | None = None
    ABOUT = ABOUT

    def apply(self, job):
        return job
"""
TERM = """
@dataclass(frozen=True, kw_only=True)
class Mean(Term):
    power: Annotated[int, Range(ge=1, le=4)] = 1

    def begin(self, student, teacher, task):
        return Formula(lambda student, teacher, targets: student.output.pow(self.power).mean())
"""
COUNT = itertools.count()

Module = Callable[[str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """Writes a module that can be imported, and gives its name: a new one each time, for modules are imported once."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str) -> str:
        name = f"foreign{next(COUNT)}"
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("", encoding="utf-8")
        (tmp_path / name / "mine.py").write_text(HEAD + text, encoding="utf-8")
        return f"{name}.mine"

    return write


def test_a_method_of_another_package_reads_back(module: Module) -> None:
    name = f"{module(METHOD)}:Mine"
    step = {"method": name, "amount": 0.5, "names": ["a"], "recover": {"epochs": 2}, "where": "fc*"}
    recipe = parse(yaml.safe_dump({"steps": [step]}), "r")
    assert isinstance(recipe.method, Chain)
    (only,) = recipe.method.methods
    assert isinstance(only, Only)
    assert type(only.method).__name__ == "Mine"
    resolved = recipe.resolved()
    assert resolved["steps"][0]["method"] == name
    assert parse(yaml.safe_dump(_lists(resolved)), "r") == recipe


def test_a_term_of_another_package_reads_back(module: Module) -> None:
    name = f"{module(TERM)}:Mean"
    step = {"method": "recover", "epochs": 1, "term": ["labels", {"term": name, "power": 2, "weight": 0.5}]}
    recipe = parse(yaml.safe_dump({"steps": [step]}), "r")
    resolved = recipe.resolved()
    assert resolved["steps"][0]["term"]["terms"][1] == {"term": name, "weight": 0.5, "power": 2}
    assert parse(yaml.safe_dump(_lists(resolved)), "r") == recipe


def test_a_reference_to_a_method_that_comes_with_kogata_is_its_name() -> None:
    recipe = parse("steps: [{method: 'kogata.methods.lowrank.svd:SVD', rank: 2}]", "r")
    assert recipe.method == chain(SVD(rank=2))
    assert recipe.resolved()["steps"][0]["method"] == "svd"


def _lists(value: object) -> object:
    if isinstance(value, dict):
        return {key: _lists(part) for key, part in value.items()}
    return [_lists(part) for part in value] if isinstance(value, tuple | list) else value


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("1 / 0", "Mine", ("importing", "ZeroDivisionError: division by zero", "Fix the module")),
        ("raise SystemExit(3)", "Mine", ("SystemExit: 3",)),
        ("import not_there_at_all", "Mine", ("No module named 'not_there_at_all'", "Install", "PYTHONPATH")),
        (METHOD, "Min", ("has no Min", "did you mean 'Mine'?")),
        (METHOD, "Other", ("has no Other", "its subclasses of Method: Mine")),
        (METHOD, "Mine.Inner", ("has no Mine.Inner",)),
        ("Mine = 3", "Mine", ("is a value of type int", "expected a subclass of kogata.methods.base.method.Method")),
        ("class Mine: pass", "Mine", ("is the class Mine", "expected a subclass")),
        (TERM, "Mean", ("is the class Mean", "expected a subclass")),
        (METHOD.replace("def apply", "def other"), "Mine", ("is abstract", "implements apply")),
        (METHOD.replace("    ABOUT = ABOUT\n", ""), "Mine", ("lacks ABOUT", "ABOUT = About(name=...")),
        (METHOD.replace("ABOUT = ABOUT", "ABOUT = 'mine'"), "Mine", ("has a value of type str as ABOUT",)),
        (METHOD.replace("@dataclass(frozen=True, kw_only=True)", ""), "Mine", ("is not a dataclass", "@dataclass(")),
        (METHOD.replace("tuple[str, ...] = ()", "Any = None"), "Mine", ("its field names is of type", "a recipe cannot write")),
        (METHOD.replace("tuple[str, ...] = ()", "torch.Tensor | None = None"), "Mine", ("field names", "Tensor")),
        (METHOD.replace("tuple[str, ...]", "'Nowhere'"), "Mine", ("types of its fields", "'Nowhere' is not defined")),
        (METHOD, "Mine ", ("is not a class; expected package.module:Class",)),
    ],
)
def test_what_cannot_be_used_says_why(module: Module, text: str, name: str, words: tuple[str, ...]) -> None:
    reference = f"{module(text)}:{name}"
    with pytest.raises(UsageError) as caught:
        parse(yaml.safe_dump({"steps": [{"method": "half"}, {"method": reference, "amount": 0.5}]}), "my.yaml")
    message = str(caught.value)
    assert message.startswith(f"recipe my.yaml: step 2: method {reference!r}")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_settings_of_a_foreign_method_are_checked_as_any(module: Module) -> None:
    name = f"{module(METHOD)}:Mine"
    for settings, words in (
        ({"amount": 2.0}, "amount is 2.0; expected above 0 and below 1"),
        ({"amount": 0.5, "name": "a"}, "the key 'name' is unknown; did you mean 'names'"),
        ({}, "amount must be given"),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            parse(yaml.safe_dump({"steps": [{"method": name, **settings}]}), "my.yaml")
        assert str(caught.value).startswith(f"recipe my.yaml: step 1 ({name}): ")


def test_names_that_are_no_references_are_told_of_them() -> None:
    with pytest.raises(UsageError, match=r"method 'kmeans' is unknown; did you mean 'k-means'.*package\.module:Class"):
        parse("steps: [{method: kmeans}]", "r")
    with pytest.raises(UsageError, match="No module named 'nowhere'"):
        parse("steps: [{method: 'nowhere.at.all:Mine'}]", "r")
    for wrong in (":Mine", "a:", "a..b:Mine", "a/b.py:Mine", "a:b:c"):
        with pytest.raises(UsageError, match=r"expected package\.module:Class"):
            parse(yaml.safe_dump({"steps": [{"method": wrong}]}), "r")
