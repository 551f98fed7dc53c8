"""The order of the rooms: what a package may import, read from the source, so that no import runs upward or in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kogata

SOURCE = Path(kogata.__file__).parent
ROOMS = (  # each may import those before it
    "errors", "_version", "_deprecated", "settings", "job", "system", "coding", "forms", "network", "calibration", "training",
    "storage", "engines", "report", "methods", "nn", "recipes", "search", "measure", "tasks", "flow", "testing", "cli",
    "__main__",
)  # fmt: skip
MODULES = {
    ".".join(("kogata", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}


def imported(path: Path, *, late: bool) -> set[str]:
    """The modules of Kogata that a file imports; ``late`` counts imports within functions and for type checkers too."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if not late and (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _for_types_only(node)):
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "kogata":
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inner}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
    return found


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def room(module: str) -> str:
    """The room of a module, by its name; of the package itself, which only hands names on, the empty string."""
    return module.split(".")[1] if "." in module else ""


def test_every_entry_at_the_root_is_a_room_in_the_order() -> None:
    entries = {
        path.name.removesuffix(".py") for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert entries - {"__init__"} == set(ROOMS)
    assert len(ROOMS) <= 24


@pytest.mark.parametrize("name", ROOMS)
def test_imports_run_downward(name: str) -> None:
    allowed = {*ROOMS[: ROOMS.index(name) + 1]}
    upward = {
        f"{module} imports {other}"
        for module, path in MODULES.items() if room(module) == name
        for other in imported(path, late=True) if room(other) not in allowed
    }  # fmt: skip
    assert not upward


def test_modules_import_each_other_in_no_circle() -> None:
    below = {module: imported(path, late=False) - {module} for module, path in MODULES.items() if room(module)}
    while free := [module for module, others in below.items() if not others & set(below)]:
        for module in free:
            del below[module]
    assert not below, f"these import each other in a circle, or import one that does: {sorted(below)}"


@pytest.mark.parametrize("module", [module for module in MODULES if room(module)])
def test_no_file_is_longer_than_400_lines(module: str) -> None:
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= 400
