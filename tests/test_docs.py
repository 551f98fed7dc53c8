"""What the documents promise: the examples run as they stand, and every file and command they name exists."""

from __future__ import annotations

import doctest
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from benchmarks.harness import CODE, RESULTS
from benchmarks.results_page import DOCS, SUMMARY, page, read_results
from kogata.cli import app
from kogata.cli.methods import WHEN
from kogata.engines.onnx_graph import MAX_GRAPH
from kogata.methods import METHODS
from kogata.recipes.recipe import open_recipe
from kogata.report.data import Report
from kogata.storage.layout import MAX_PLANE
from kogata.storage.manifest import MAX_MANIFEST

ROOT = Path(__file__).parent.parent
FRONT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
DOCUMENTS = [*FRONT, ROOT / "data" / "networks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = {".ci", "benchmarks", "data", "docs", "examples", "src", "tests"}  # of the repository, as documents name them


class Net(nn.Module):
    """The model class of the README's example."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    loader = [(torch.randn(16, 64), torch.randint(10, (16,))) for _ in range(2)]
    names = {
        "model": Net(), "Net": Net, "batches": loader, "loader": loader, "cross_entropy": nn.functional.cross_entropy,
        "accuracy": lambda net: float(net(loader[0][0]).shape[1]),
    }  # fmt: skip
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(block, "README.md", "exec"), names)
    x = loader[0][0]
    torch.testing.assert_close(names["session"](x), names["model"](x), rtol=1e-4, atol=1e-5)  # type: ignore[operator]


def test_the_example_of_a_loop_of_ones_own_runs() -> None:
    block = re.findall(r"```python\n(.*?)```", (DOCS / "methods.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(compile(block, "methods.md", "exec"), names)
    shared = {tensor.data_ptr() for tensor in names["model"].parameters()}
    assert not shared & {tensor.data_ptr() for tensor in names["small"].parameters() if tensor.numel()}
    assert float((names["small"].weight == 0).float().mean()) > 0.89


def test_the_example_task_and_recipe_run(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "kogata", "compress", "examples/my_task.py", "--recipe", "examples/my_recipe.yaml",
        "-o", str(tmp_path / "mine"), "--engine", "none",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = Report.load(tmp_path / "mine" / "report.json")
    assert report.alpha > 10
    assert report.missed == ()
    assert report.dense.score is not None
    assert report.dense.score > 85


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"
    anchors = {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in re.findall(r"^#+ (.*)", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


def code(document: Path) -> list[str]:
    """What stands in backticks in a document, and every line of its blocks of commands."""
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return [*(" ".join(span.split()) for span in spans), *lines]


@pytest.mark.parametrize("document", FRONT, ids=lambda path: path.name)
def test_paths_commands_and_names_in_the_text_exist(document: Path) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    commands = [command.name for command in app.registered_commands]
    found = code(document)
    assert len(found) > 5
    for text in found:
        if text.partition("/")[0] in FOLDERS and re.fullmatch(r"[\w./-]+", text) and "NAME" not in text:
            assert (ROOT / text).exists(), text
        elif text.startswith("make "):
            assert text.split()[1] in targets, text
        elif text.startswith("kogata "):
            assert text.split()[1] in commands, text
        elif re.fullmatch(r"kogata(\.\w+)+", text):
            pkgutil.resolve_name(text)


def test_the_example_of_good_style_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {"__name__": "contributing"}
    exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    (test,) = doctest.DocTestFinder().find(names["row_scales"], "row_scales", module=False, globs=names)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


def test_the_limits_that_security_names_are_those_of_the_code() -> None:
    (limits,) = re.findall(
        r"take (\d+) MiB .*?array (\d+) GiB, the engine graph (\d+) MiB", (ROOT / "SECURITY.md").read_text("utf-8"), re.DOTALL
    )
    assert [int(limit) for limit in limits] == [MAX_MANIFEST >> 20, MAX_PLANE >> 30, MAX_GRAPH >> 20]


def test_the_table_of_families_is_that_of_the_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, _, table = text.partition("| family | when | for example |\n")
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.partition("\n\n")[0].splitlines()[1:]]
    assert {family: when for family, when, _ in rows} == WHEN
    families = {method.ABOUT.name: method.ABOUT.family for method in METHODS}
    for family, _, examples in rows:
        named = re.findall(r"`([^`]+)`", examples)
        assert named
        assert {families[name] for name in named} == {family}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 90


def test_hooks_fetch_nothing_and_run_what_the_project_has() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tools = {re.split(r"[<>=]", requirement)[0] for requirement in project["optional-dependencies"]["dev"]}
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    programs = {hook["entry"].split()[0] for hook in hooks}
    assert programs <= {f".venv/bin/{tool}" for tool in (*tools, "python")}
    assert {".venv/bin/ruff", ".venv/bin/pyright"} <= programs


@pytest.mark.parametrize("recipe", sorted((ROOT / "benchmarks" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_of_the_benchmarks_are_valid(recipe: Path) -> None:
    assert len(open_recipe(str(recipe)).method.steps()) > 5


def test_the_page_of_results_is_made_from_the_committed_ones() -> None:
    """``python -m benchmarks --write-results`` makes it."""
    made = page(read_results(RESULTS, CODE), SUMMARY.read_text(encoding="utf-8"))
    assert made == (DOCS / "results.md").read_text(encoding="utf-8"), "run: python -m benchmarks --write-results"


def test_the_summary_of_results_types_no_figure() -> None:
    """Whatever looks like a measured figure is a placeholder."""
    text = re.sub(r"\{[^}]*\}", "", SUMMARY.read_text(encoding="utf-8"))
    assert not re.findall(r"\d[\d.,]* ?(?:%|×(?! \d)|points|bytes|times|ms)", text)


def test_every_method_is_in_the_docs_with_its_paper() -> None:
    table = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").partition("<!-- end of table -->")[0]
    rows = [row.strip("|").split("|") for row in table.splitlines() if row.startswith("| `")]
    found = {row[0].strip(" `"): (row[1].strip(" `"), row[5].strip(), row[6].strip()) for row in rows}
    assert found == {kind.ABOUT.name: (kind.__name__, kind.ABOUT.summary, kind.ABOUT.paper) for kind in METHODS}
