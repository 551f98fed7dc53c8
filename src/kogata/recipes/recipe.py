"""Recipes: a chain of methods as validated YAML. A resolved recipe has all defaults written out and parses to the same recipe.

A step names a method that comes with Kogata, ``method: k-means``, or a class of another package, ``method:
my_package.my_module:MyMethod``. That package must be installed or be in ``PYTHONPATH``. Terms of a loss are named in the same
way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from kogata.errors import UsageError, unknown
from kogata.job import Where
from kogata.methods import METHODS
from kogata.methods.base.compose import chain, only, per_site
from kogata.methods.base.method import Method
from kogata.recipes import targets
from kogata.recipes.references import of_recipe
from kogata.recipes.targets import Target
from kogata.settings import check_value
from kogata.training.terms import TERMS, SumOfTerms, Term

_KEYS = ("name", "about", "targets", "steps")

Named = TypeVar("Named")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method, usually a chain, with the targets that the result should meet.

    >>> from kogata.recipes.recipe import Recipe
    >>> from kogata.methods import KMeans
    >>> Recipe(name="mine", method=KMeans(clusters=16)).resolved()["steps"]
    [{'method': 'k-means', 'clusters': 16}]
    """

    name: str
    method: Method
    targets: tuple[Target, ...] = ()
    about: str = ""

    def resolved(self) -> dict[str, Any]:
        """The recipe as JSON values, with all defaults written out."""
        steps = self.method.settings()
        wanted = {target.goal: target.text for target in self.targets}
        return {"name": self.name, "about": self.about, "targets": wanted, "steps": steps.get("steps", [steps])}


def built_in() -> tuple[str, ...]:
    """The names of the recipes that come with Kogata."""
    folder = files("kogata") / "recipes"
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def open_recipe(reference: str) -> Recipe:
    """Open a built-in recipe by name, or a YAML file by its path, which must end in ``.yaml`` or ``.yml``.

    Raises UsageError when there is no such recipe, or when it is not valid; the message names the key and what is allowed.

    >>> from kogata.recipes.recipe import open_recipe
    >>> open_recipe("deep-compression").name
    'deep-compression'
    """
    path = Path(reference)
    if path.suffix in (".yaml", ".yml"):
        try:
            return parse(path.read_text(encoding="utf-8"), str(path))
        except OSError as error:
            raise UsageError(f"recipe {path}: cannot be read: {error.strerror}.") from None
    if reference not in built_in():
        raise UsageError(f"recipe {reference!r} {unknown(reference, built_in())} A file is named by a path that ends in .yaml.")
    return parse((files("kogata") / "recipes" / f"{reference}.yaml").read_text(encoding="utf-8"), reference)


def parse(text: str, source: str) -> Recipe:
    """Parse a recipe from YAML text. Raises UsageError, naming ``source``, the key, and what is allowed."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"recipe {source}: is not YAML: {str(error).replace(chr(10), ' ')}.") from None
    if not isinstance(data, Mapping):
        raise UsageError(f"recipe {source}: expected a mapping with the keys {', '.join(_KEYS)}.")
    values = cast("Mapping[str, Any]", data)
    _known(values, _KEYS, f"recipe {source}")
    steps = values.get("steps")
    if not isinstance(steps, list) or not steps:
        raise UsageError(f"recipe {source}: steps must be a list of at least one step, such as '- method: k-means'.")
    wanted = values.get("targets") or {}
    if not isinstance(wanted, Mapping):
        raise UsageError(f"recipe {source}: targets is {wanted!r}; expected a mapping, such as '{{size: 1/20, drop: 0.5pt}}'.")
    methods = [_step(step, f"recipe {source}: step {i}") for i, step in enumerate(cast("list[Any]", steps), 1)]
    return Recipe(
        name=str(values.get("name", Path(source).stem)), about=str(values.get("about", "")), method=chain(*methods),
        targets=targets.parse(cast("Mapping[str, object]", wanted)),
    )  # fmt: skip


def _step(step: Any, where: str) -> Method:
    if not isinstance(step, Mapping) or not ("method" in step or "per-site" in step):
        raise UsageError(f"{where}: expected a mapping with the key 'method' (or 'per-site' for a plan), found {step!r}.")
    values = {str(key): value for key, value in cast("Mapping[Any, Any]", step).items()}
    restriction = values.pop("where", None)
    title = "per-site" if "per-site" in values else str(values["method"])
    method = _plan(values, where) if title == "per-site" else _method(values, where)
    return method if restriction is None else only(method, _where(restriction, f"{where} ({title}): where"))


def _plan(values: Mapping[str, Any], where: str) -> Method:
    """A plan: a mapping from globs on the names of weights or layers to a step each."""
    _known(values, ("per-site",), f"{where} (per-site)")
    plan = values["per-site"]
    if not isinstance(plan, Mapping):
        raise UsageError(f"{where} (per-site): expected a mapping from globs to a step each; found {plan!r}.")
    steps = cast("Mapping[Any, Any]", plan)
    return per_site({str(glob): _step(step, f"{where} (per-site): {glob!r}") for glob, step in steps.items()})


def _method(values: dict[str, Any], where: str) -> Method:
    """A method from its name and settings."""
    title = values.pop("method")
    kind = _named(title, [(method.ABOUT.name, method) for method in METHODS], Method, f"{where}: method")
    return cast("Method", _build(kind, values, f"{where} ({title})"))


def _named(title: Any, ours: Sequence[tuple[str, type[Named]]], base: type[Named], where: str) -> type[Named]:
    """A class by its short name or by ``package.module:Class``."""
    kinds = dict(ours)
    if isinstance(title, str) and ":" in title:
        return of_recipe(title, base, where)
    if title not in kinds:
        raise UsageError(f"{where} {title!r} {unknown(str(title), kinds)} Name others as package.module:Class.")
    return kinds[title]


def _where(value: Any, where: str) -> Where:
    values = {"layers": value} if isinstance(value, str | list) else value
    if not isinstance(values, Mapping):
        raise UsageError(f"{where}: expected a glob, a list of globs, or a mapping; found {value!r}.")
    listed = {k: [v] if isinstance(v, str) else v for k, v in cast("Mapping[str, Any]", values).items()}
    return cast("Where", _build(Where, listed, where))


def _build(kind: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """Build a dataclass, including nested ones, from plain values; every key and type is checked."""
    hints = get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    _known(values, fields, where)
    missing = [n for n, f in fields.items() if n not in values and f.default is f.default_factory is dataclasses.MISSING]
    if missing:
        raise UsageError(f"{where}: {', '.join(missing)} must be given.")
    given: dict[str, Any] = {}
    for key, value in values.items():
        if Term in (hints[key], *get_args(hints[key])):
            given[key] = (_terms if get_origin(hints[key]) is tuple else _term)(value, f"{where}: {key}")
            continue
        nested = next((t for t in (hints[key], *get_args(hints[key])) if dataclasses.is_dataclass(t)), None)
        if nested is not None and isinstance(value, Mapping):
            inner = {k: v for k, v in cast("Mapping[str, Any]", value).items() if (k, v) != ("method", "recover")}
            given[key] = _build(cast("type[Any]", nested), inner, f"{where}: {key}")
            continue
        try:
            given[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            reasons = "; or ".join(dict.fromkeys(str(line["msg"]) for line in error.errors()))
            raise UsageError(f"{where}: {key} is {value!r}: {reasons}.") from None
        check_value(where, key, given[key], hints[key])
    return kind(**given)


def _term(value: Any, where: str) -> Term | None:
    """A term of a distillation loss, from its name, a mapping with name and settings, or a list of terms to be summed."""
    if value is None:
        return None
    if isinstance(value, list):
        return SumOfTerms(terms=_terms(value, where))
    values = {"term": value} if isinstance(value, str) else value
    if not isinstance(values, Mapping) or "term" not in values:
        raise UsageError(
            f"{where}: expected a term such as 'labels', a mapping with the key 'term', or a list; found {value!r}."
        )
    settings = {str(key): part for key, part in cast("Mapping[Any, Any]", values).items() if key != "term"}
    title = values["term"]
    kind = _named(title, [(str(kind.term), kind) for kind in TERMS], Term, f"{where}: term")
    listed = {k: [v] if k in ("student", "teacher") and isinstance(v, str) else v for k, v in settings.items()}
    return cast("Term", _build(kind, listed, f"{where} ({title})"))


def _terms(value: Any, where: str) -> tuple[Term, ...]:
    if not isinstance(value, list):
        raise UsageError(f"{where} is {value!r}; expected a list of terms, such as '[{{weight: 0.9, term: soft-targets}}]'.")
    found = [_term(part, f"{where} {i}") for i, part in enumerate(cast("list[Any]", value), 1)]
    if not all(found):
        raise UsageError(f"{where}: a term in the list is empty.")
    return tuple(term for term in found if term is not None)


def _known(values: Mapping[str, Any], allowed: Iterable[str], where: str) -> None:
    for key in values:
        if key not in allowed:
            raise UsageError(f"{where}: the key {key!r} {unknown(str(key), allowed)}")
