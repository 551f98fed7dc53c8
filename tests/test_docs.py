"""What the documents promise: the examples run as they stand, and every file and command they name exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.__main__ import results
from benchmarks.harness import RESULTS
from kogata.methods import METHODS
from kogata.recipes.recipe import open_recipe
from kogata.report.data import Report

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


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


@pytest.mark.parametrize("recipe", sorted((ROOT / "benchmarks" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_of_the_benchmarks_are_valid(recipe: Path) -> None:
    assert len(open_recipe(str(recipe)).method.steps()) > 5


def test_the_results_of_the_readme_are_the_committed_ones() -> None:
    """``python -m benchmarks --results`` prints the table."""
    assert results(RESULTS) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_method_is_in_the_docs_with_its_paper() -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    rows = [row.strip("|").split("|") for row in text.splitlines() if row.startswith("| `")]
    found = {row[0].strip(" `"): (row[1].strip(" `"), row[5].strip(), row[6].strip()) for row in rows}
    assert found == {kind.ABOUT.name: (kind.__name__, kind.ABOUT.summary, kind.ABOUT.paper) for kind in METHODS}
