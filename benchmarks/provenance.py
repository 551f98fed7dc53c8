"""Which code a benchmark's figures are of: the modules it depends on, and a digest of what they do.

A benchmark depends on the modules that it imports, those that these import, and so on, as far as they can change a figure:

- A name that a package only hands on, such as ``LSQ`` of ``kogata.methods``, leads to the module that defines it, not to all
  others of that package. The list of all methods counts only for a benchmark that names it: within Kogata, recipes and the
  command line look methods up in it.
- A benchmark that opens recipes also depends on the committed recipes and on the methods that these name.
- Modules that word, guard or store what others compute (:data:`NO_FIGURES`) do not count.

The digest is that of the syntax trees, without comments, docstrings and layout. A change anywhere in ``calibration`` makes the
results of every benchmark that calibrates stale, which is right: nobody knows yet whether its figures are still the same.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml

ROOT = Path(__file__).parent.parent
FOLDERS = {"kogata": "src/kogata", "benchmarks": "benchmarks", "tests": "tests"}  # the packages whose code counts
RECIPES = ("src/kogata/recipes", "benchmarks/recipes")
NO_FIGURES = {
    "benchmarks.harness", "kogata._deprecated", "kogata._version", "kogata.errors", "kogata.report.html", "kogata.settings",
    "kogata.system.atomic", "kogata.system.environment", "kogata.system.lock", "kogata.system.progress",
}  # fmt: skip
ALL_METHODS = ("kogata.methods", "METHODS")
OPEN_RECIPES = {"kogata.recipes.recipe", "kogata.cli"}


@dataclass(frozen=True)
class Import:
    """A name that a module imports from another, or the other module itself where ``name`` is None."""

    module: str
    name: str | None
    bound: str  # the name by which the importing module knows it


@dataclass(frozen=True)
class Source:
    """What counts of one module: its imports with and without those for type checkers, its strings, and its digest."""

    imports: tuple[Import, ...]
    with_types: tuple[Import, ...]
    strings: frozenset[str]
    digest: str


@dataclass(frozen=True)
class Code:
    """The project's source and recipes as they were when they were read. Nothing of it is imported.

    ``texts`` are the modules by dotted name, ``packages`` those that are an ``__init__.py``, ``recipes`` parsed YAML by path.
    """

    texts: dict[str, str]
    packages: frozenset[str]
    recipes: dict[str, Any]

    @classmethod
    def read(cls, root: Path = ROOT) -> Code:
        """Read the source below the project's folder ``root``."""
        texts, packages = dict[str, str](), set[str]()
        for package, folder in FOLDERS.items():
            for path in (root / folder).rglob("*.py"):
                parts = path.relative_to(root / folder).with_suffix("").parts
                module = ".".join((package, *parts)).removesuffix(".__init__")
                texts[module] = path.read_text(encoding="utf-8")
                if path.stem == "__init__":
                    packages.add(module)
        recipes = sorted(path for folder in RECIPES for path in (root / folder).glob("*.yaml"))
        parsed = {path.relative_to(root).as_posix(): yaml.safe_load(path.read_text(encoding="utf-8")) for path in recipes}
        return cls(texts, frozenset(packages), parsed)

    def digest(self, benchmark: str) -> str:
        """The SHA-256 of all that can change the figures of a benchmark, in hexadecimal; the same in every Python version.

        :raises ValueError: there is no such benchmark, or a module has a relative import.
        """
        found = hashlib.sha256()
        modules, recipes = self.depends(benchmark)
        for module in sorted(modules):
            found.update(f"{module} {self._source(module).digest}\n".encode())
        for path in sorted(recipes):
            found.update(f"{path} {self.recipes[path]!r}\n".encode())
        return found.hexdigest()

    def depends(self, benchmark: str) -> tuple[set[str], set[str]]:
        """The modules and the recipes that can change the figures of a benchmark."""
        start = f"benchmarks.{benchmark}"
        if start not in self.texts:
            raise ValueError(f"there is no benchmark {benchmark!r}: expected benchmarks/{benchmark}.py")
        found, pending, recipes = {start}, self._imported(start), set[str]()
        if pending & OPEN_RECIPES:
            recipes = set(self.recipes)
            pending |= self._methods_of_recipes()
        while pending:
            module = pending.pop()
            found.add(module)
            pending |= self._imported(module) - found
        return found, recipes

    def _source(self, module: str) -> Source:
        return _parsed(self.texts[module])

    def _imported(self, module: str) -> set[str]:
        """The modules that define what a module imports, within functions too, but not for type checkers alone."""
        names_methods = module.startswith("benchmarks.")
        return {
            home
            for each in self._source(module).imports
            if names_methods or (each.module, each.name) != ALL_METHODS
            for home in self._homes(each.module, each.name)
        } - NO_FIGURES

    def _homes(self, module: str, name: str | None) -> set[str]:
        """The modules that a name of a module leads to: one of the project's, none of other packages, or every method's."""
        if name is not None and f"{module}.{name}" in self.texts:
            return {f"{module}.{name}"}
        if module not in self.texts:
            return set()
        if (module, name) == ALL_METHODS:
            return {home for each in self._source(module).imports for home in self._homes(each.module, each.name)}
        if module in self.packages:
            for each in self._source(module).with_types:
                if each.bound == name:
                    return self._homes(each.module, each.name)
        return {module}

    def _methods_of_recipes(self) -> set[str]:
        """The modules of the methods that recipes name."""
        named = {name for recipe in self.recipes.values() for name in _methods(recipe)}
        return {home for home in self._homes(*ALL_METHODS) if named & self._source(home).strings}


@cache
def _parsed(text: str) -> Source:
    tree = ast.parse(text)
    return Source(
        imports=tuple(_imports(tree, types=False)),
        with_types=tuple(_imports(tree, types=True)),
        strings=frozenset(
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ),
        digest=hashlib.sha256("".join(_tokens(tree)).encode()).hexdigest(),
    )


def _imports(tree: ast.Module, *, types: bool) -> Iterator[Import]:
    """Every import of a module; those below ``if TYPE_CHECKING`` only with ``types``."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise ValueError(f"line {node.lineno}: a relative import; write the full name of the module")
            yield from (Import(node.module, alias.name, alias.asname or alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (Import(alias.name, None, alias.asname or alias.name) for alias in node.names)
        elif types or not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            pending += ast.iter_child_nodes(node)


def _methods(recipe: Any) -> Iterator[str]:
    """The value of every key ``method`` in a recipe."""
    if isinstance(recipe, dict):
        for key, value in cast("dict[str, Any]", recipe).items():
            if key == "method":
                yield str(value)
            yield from _methods(value)
    elif isinstance(recipe, list):
        for part in cast("list[Any]", recipe):
            yield from _methods(part)


def _tokens(node: Any) -> Iterator[str]:
    """A syntax tree as text: kinds of nodes and values, without docstrings, places, and fields that a version may add empty."""
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name, value in ast.iter_fields(node):
            kept = _undocumented(node) if name == "body" else value
            if kept is not None and kept != [] and name not in ("ctx", "kind", "type_comment"):
                yield f" {name}="
                yield from _tokens(kept)
        yield ")"
    elif isinstance(node, list):
        yield "["
        for part in cast("list[Any]", node):
            yield from _tokens(part)
            yield ","
        yield "]"
    else:
        yield repr(node)


def _undocumented(node: Any) -> Any:
    """The body of a node, without its docstring."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return node.body[1:] if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None else node.body
