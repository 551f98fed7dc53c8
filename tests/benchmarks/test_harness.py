"""The benchmarks' harness: what a row's bar means, what is printed and kept, and the list."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.harness import Benchmark, Row, benchmarks, run, runs
from benchmarks.provenance import Code

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("value", "bar", "direction", "holds"),
    [
        (1.0, 2.0, "<=", True),
        (2.0, 2.0, "<=", True),
        (3.0, 2.0, "<=", False),
        (3.0, 2.0, ">=", True),
        (2.0, 2.0, ">=", True),
        (1.0, 2.0, ">=", False),
        (math.nan, 2.0, ">=", False),
        (math.nan, 2.0, "<=", False),
        (1.0, None, None, None),
    ],
)
def test_holds(value: float, bar: float | None, direction: str | None, holds: bool | None):
    assert Row("case", "metric", value, "s", bar, direction).holds is holds  # pyright: ignore[reportArgumentType]


def test_a_bar_and_its_direction_belong_together():
    with pytest.raises(ValueError, match="belong together"):
        Row("case", "metric", 1.0, "s", bar=2.0)
    with pytest.raises(ValueError, match="belong together"):
        Row("case", "metric", 1.0, "s", direction="<=")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for results, not there yet, in place of the real one, in a project of two benchmarks."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "sizes.py").write_text("SEED = 0\n")
    (tmp_path / "benchmarks" / "missed.py").write_text("SEED = 1\n")
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(harness, "CODE", Code.read(tmp_path))
    return tmp_path / "results"


def test_run_prints_and_keeps_the_rows(results: Path, capsys: pytest.CaptureFixture[str]):
    rows = [Row("lenet5", "size", 40.0, "x", 35.0, ">="), Row("lenet5", "time", 1.5, "s", note="once")]
    assert run("sizes", rows, [0, 1]) == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in ("sizes", "lenet5", "40 x", ">= 35", "yes", "1.5 s", "once"))
    kept = json.loads((results / "sizes.json").read_text())
    names = ["case", "metric", "value", "unit", "bar", "direction", "note", "holds"]
    assert kept["rows"] == [
        dict(zip(names, ["lenet5", "size", 40.0, "x", 35.0, ">=", "", True], strict=True)),
        dict(zip(names, ["lenet5", "time", 1.5, "s", None, None, "once", None], strict=True)),
    ]
    assert {"cpu", "cpu_flags", "threads", "system", "versions", "date", "commit", "code", "seeds"} == set(kept["environment"])
    assert kept["environment"]["seeds"] == [0, 1]
    assert kept["environment"]["code"] == Code.read(results.parent).digest("sizes")
    assert [path.name for path in results.iterdir()] == ["sizes.json"]


def test_what_is_kept_between_runs_is_kept_apart_by_code(results: Path, monkeypatch: pytest.MonkeyPatch):
    first = runs("sizes")
    assert first == runs("sizes") != runs("missed")
    assert first.parent == ROOT / "runs" / "sizes"
    (results.parent / "benchmarks" / "sizes.py").write_text("SEED = 2\n")
    assert runs("sizes") == first  # the process still runs the code that it started with
    monkeypatch.setattr(harness, "CODE", Code.read(results.parent))
    assert runs("sizes") != first


@pytest.mark.parametrize(("answers", "commit"), [(("", ""), None), (("abc", ""), "abc"), (("abc", " M x.py"), "abc+changes")])
def test_the_commit_says_whether_the_code_is_that_of_the_commit(
    answers: tuple[str, str], commit: str | None, results: Path, monkeypatch: pytest.MonkeyPatch
):
    found = dict(zip(("rev-parse", "status"), answers, strict=True))
    monkeypatch.setattr(harness, "_git", lambda verb, *_: found[verb])
    run("sizes", [Row("net", "size", 1.0, "B")], [0])
    assert json.loads((results / "sizes.json").read_text())["environment"]["commit"] == commit


def test_a_missed_bar_is_an_exit_status(results: Path, capsys: pytest.CaptureFixture[str]):
    rows = [Row("a", "b", 1.0, "s", 2.0, "<="), Row("a", "c", math.nan, "s", 2.0, "<=")]
    assert run("missed", rows, [0]) == 1
    assert "NO" in capsys.readouterr().out
    assert json.loads((results / "missed.json").read_text())["rows"][1]["value"] is None


def test_benchmarks_are_found_without_importing_them(tmp_path: Path):
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "harness.py").write_text("")
    (tmp_path / "b.py").write_text('"""Sizes of b.\n\nMore."""\nraise RuntimeError\nMINUTES = 2\n')
    (tmp_path / "a.py").write_text('"""Times of a."""\nMINUTES: float = 0.5\n')
    assert benchmarks(tmp_path) == [Benchmark("a", 0.5, "Times of a."), Benchmark("b", 2.0, "Sizes of b.")]


@pytest.mark.parametrize("text", ['"""Sizes."""\n', "MINUTES = 1\n"])
def test_a_benchmark_that_does_not_describe_itself_is_refused(tmp_path: Path, text: str):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ValueError, match=r"bad\.py: a benchmark opens with a docstring and sets MINUTES"):
        benchmarks(tmp_path)


def test_the_list():
    command = [sys.executable, "-m", "benchmarks", "--list"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "run with" in listed
    assert all(f"benchmarks.{benchmark.name}" in listed for benchmark in benchmarks(ROOT / "benchmarks"))
