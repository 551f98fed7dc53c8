"""What makes a benchmark's results stale: a change of what its code does, wherever it is, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.harness import CODE
from benchmarks.provenance import Code

SOURCE = {
    "benchmarks/__init__.py": "",
    "benchmarks/harness.py": "import subprocess\n",
    "benchmarks/alone.py": '"""Measures SVD alone."""\nfrom benchmarks import harness\nfrom kogata.methods import SVD\n',
    "benchmarks/cooked.py": "from kogata.recipes.recipe import open_recipe\n",
    "benchmarks/every.py": "from kogata.methods import METHODS\n",
    "benchmarks/recipes/net.yaml": "steps:\n- method: prune\n  sparsity: 0.9  # of the weights\n",
    "src/kogata/__init__.py": "",
    "src/kogata/errors.py": "class DataError(Exception): ...\n",
    "src/kogata/job.py": "class Job: ...\n",
    "src/kogata/methods/__init__.py": (
        "from kogata.methods.svd import SVD\nfrom kogata.methods.prune import Prune\nfrom kogata.methods.hash import Hashed\n"
        "METHODS = (SVD, Prune, Hashed)\n"
    ),
    "src/kogata/methods/base.py": (
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\nfrom kogata.errors import DataError\n"
        "if TYPE_CHECKING:\n    from kogata.job import Job\n"
    ),
    "src/kogata/methods/svd.py": (
        'from kogata.methods.base import Method\n\nNAME = "svd"\n\n\ndef rank(size: int) -> int:\n    """Half of it."""\n'
        "    from kogata.methods import sizes\n\n    return sizes.half(size)\n"
    ),
    "src/kogata/methods/sizes.py": "def half(size: int) -> int:\n    return size // 2\n",
    "src/kogata/methods/prune.py": 'NAME = "prune"\n',
    "src/kogata/methods/hash.py": 'NAME = "hashed"\n',
    "src/kogata/recipes/recipe.py": "from kogata.methods import METHODS\n",
    "src/kogata/recipes/4-bit.yaml": "steps: []\n",
    "tests/zoo.py": "",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project: a benchmark of one method, one of recipes, and one of every method."""
    for name, text in SOURCE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def digests(project: Path) -> dict[str, str]:
    code = Code.read(project)
    return {name: code.digest(name) for name in ("alone", "cooked", "every")}


def test_what_a_benchmark_depends_on(project: Path) -> None:
    code = Code.read(project)
    methods = {f"kogata.methods.{name}" for name in ("svd", "base", "sizes")}
    assert code.depends("alone") == ({"benchmarks.alone", *methods}, set())
    assert code.depends("cooked") == (
        {"benchmarks.cooked", "kogata.recipes.recipe", "kogata.methods.prune"},
        {"benchmarks/recipes/net.yaml", "src/kogata/recipes/4-bit.yaml"},
    )
    assert code.depends("every") == (
        {"benchmarks.every", *methods, "kogata.methods.prune", "kogata.methods.hash"}, set(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("file", "before", "after", "stale"),
    [
        ("src/kogata/methods/sizes.py", "// 2", "// 3", {"alone", "every"}),  # imported within a function
        ("src/kogata/methods/prune.py", '"prune"', '"prune" + ""', {"cooked", "every"}),
        ("src/kogata/methods/hash.py", "hashed", "hash", {"every"}),
        ("benchmarks/recipes/net.yaml", "0.9", "0.8", {"cooked"}),
        ("src/kogata/recipes/recipe.py", "\n", "\nSTRICT = True\n", {"cooked"}),
        ("benchmarks/alone.py", "SVD\n", "SVD\nSEED = 1\n", {"alone"}),
        ("src/kogata/methods/svd.py", "Half of it.", "A half of it.", set()),
        ("src/kogata/methods/svd.py", "return", "# rounded down\n\n    return", set()),
        ("src/kogata/methods/svd.py", "size: int", "\n    size: int,\n", set()),
        ("src/kogata/methods/svd.py", '"svd"', "'svd'", set()),
        ("benchmarks/alone.py", "Measures", "Measured", set()),
        ("benchmarks/recipes/net.yaml", "of the weights", "of all weights", set()),
        ("src/kogata/errors.py", "...", "pass", set()),
        ("src/kogata/job.py", "...", "pass", set()),  # imported for type checkers alone
        ("benchmarks/harness.py", "subprocess", "sys", set()),
        ("src/kogata/methods/__init__.py", "SVD, Prune", "Prune, SVD", set()),
    ],
)
def test_a_change_makes_stale_what_depends_on_it(project: Path, file: str, before: str, after: str, stale: set[str]) -> None:
    fresh, path = digests(project), project / file
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")
    changed = digests(project)
    assert {name for name in fresh if fresh[name] != changed[name]} == stale


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("size // 2", "2 // size"),
        lambda text: text.replace("half", "third"),
        lambda text: text.replace("return size", "yield size"),
        lambda text: text.replace(": int)", ": float)"),
        lambda text: text + "half = abs\n",
        lambda text: text.replace("size: int", "*size: int"),
        lambda text: text.replace("2", "2.0"),
        lambda text: text.replace("2", "True"),
    ],
)  # fmt: skip
def test_whatever_a_module_does_differently_changes_its_digest(project: Path, edit: Callable[[str], str]) -> None:
    fresh, path = digests(project)["alone"], project / "src/kogata/methods/sizes.py"
    path.write_text(edit(SOURCE["src/kogata/methods/sizes.py"]), encoding="utf-8")
    assert digests(project)["alone"] != fresh


def test_a_digest_does_not_depend_on_the_version_of_python(project: Path) -> None:
    """Syntax trees differ between versions; this one was taken with Python 3.11."""
    assert digests(project)["alone"] == "31c08478351f8a2289901e53199b729d6f3a479f70805142c1f6fab1b24e71b0"


def test_a_benchmark_that_is_not_there_is_told(project: Path) -> None:
    with pytest.raises(ValueError, match=r"no benchmark 'gone': expected benchmarks/gone\.py"):
        Code.read(project).digest("gone")


def test_a_relative_import_is_told(project: Path) -> None:
    (project / "src/kogata/methods/prune.py").write_text("from . import svd\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 1: a relative import; write the full name of the module"):
        Code.read(project).digest("every")


def test_a_benchmark_of_this_project_depends_on_the_methods_it_measures_and_no_other() -> None:
    modules, _ = CODE.depends("binary")
    measured = ("lab", "lsq", "binary_connect", "ternary", "xnor_net")
    assert {f"kogata.methods.quantization.{name}" for name in measured} <= modules
    assert "kogata.methods.quantization.gptq" not in modules
    assert {"kogata.training.loop", "kogata.storage.load", "kogata.forms.binary"} <= modules
    assert "kogata.methods.pruning.magnitude_pruning" in CODE.depends("deep_compression")[0]
