"""Shared parts of the benchmarks: rows with bars, a table, and one JSON file of results per benchmark."""

import ast
import json
import math
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from benchmarks.provenance import ROOT, Code
from kogata.system.atomic import writing
from kogata.system.environment import environment

RESULTS = Path(__file__).parent / "results"
NO_BENCHMARKS = {"__init__", "__main__", "harness", "provenance", "results_page"}  # modules of this folder that measure nothing
CODE = Code.read()  # now, not when a benchmark ends hours later: what runs is the code as it was when the process started


@dataclass(frozen=True)
class Row:
    """One figure: what was measured, and the bar that it must not pass.

    >>> Row("lenet5", "size", 40.0, "x", bar=35.0, direction=">=").holds
    True
    """

    case: str
    metric: str
    value: float
    unit: str
    bar: float | None = None
    direction: Literal["<=", ">="] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse a bar without a direction and a direction without a bar."""
        if (self.bar is None) != (self.direction is None):
            raise ValueError(f"{self.case}, {self.metric}: a bar and its direction belong together")

    @property
    def holds(self) -> bool | None:
        """Whether the value is on the right side of the bar (NaN never is); None without a bar."""
        if self.bar is None:
            return None
        return self.value <= self.bar if self.direction == "<=" else self.value >= self.bar


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: its module name, its approximate duration in minutes, and what it measures."""

    name: str
    minutes: float
    about: str


def benchmarks(folder: Path) -> list[Benchmark]:
    """Return the benchmarks of a folder by name, read from their source, because importing them would take long.

    :raises ValueError: a module lacks its docstring or ``MINUTES``.
    """
    return [_describe(path) for path in sorted(folder.glob("*.py")) if path.stem not in NO_BENCHMARKS]


def _describe(path: Path) -> Benchmark:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    about = (ast.get_docstring(tree) or "").partition("\n")[0]
    for node in tree.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id="MINUTES")], value=value)
                | ast.AnnAssign(target=ast.Name(id="MINUTES"), value=ast.expr() as value)
            ) if about:
                return Benchmark(path.stem, float(ast.literal_eval(value)), about)
            case _:
                continue
    raise ValueError(f"{path}: a benchmark opens with a docstring and sets MINUTES to a number")


def runs(name: str) -> Path:
    """The folder in which a benchmark keeps what it need not repeat, such as trained networks.

    Each state of the code that the benchmark depends on has its own, so that no result is put together from several.
    """
    return ROOT / "runs" / name / CODE.digest(name)[:12]


def kept(path: Path, measure: Callable[[], Sequence[Row]]) -> list[Row]:
    """The rows of one case, measured unless they are in the file ``path`` already."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = measure()
        with writing(path) as file:
            file.write(json.dumps([asdict(row) for row in rows]).encode())
    return [Row(**row) for row in json.loads(path.read_bytes())]


def run(name: str, rows: list[Row], seeds: Sequence[int]) -> int:
    """Print the rows, write ``results/NAME.json``, and return the exit status: 0 when every bar holds, else 1."""
    _print(name, rows)
    result = {
        "environment": {**environment(), "commit": _commit(), "code": CODE.digest(name), "seeds": list(seeds)},
        "rows": [{**asdict(row), "value": _finite(row.value), "holds": row.holds} for row in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    part = RESULTS / f".{name}.{os.getpid()}.part"
    part.write_text(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(RESULTS / f"{name}.json")
    return int(any(row.holds is False for row in rows))


def _print(name: str, rows: list[Row]) -> None:
    table = Table("case", "metric", "value", "bar", "holds", "note", title=name)
    for row in rows:
        bar = "" if row.bar is None else f"{row.direction} {row.bar:g}"
        holds = {None: "", True: "[green]yes[/]", False: "[bold red]NO[/]"}[row.holds]
        table.add_row(row.case, row.metric, f"{row.value:.6g} {row.unit}".strip(), bar, holds, row.note)
    Console().print(table)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN


def _commit() -> str | None:
    """Return the commit the benchmark ran on, ``+changes`` where the code differs from it; None outside a repository."""
    commit = _git("rev-parse", "--verify", "--quiet", "HEAD")
    if not commit:
        return None
    return commit + ("+changes" if _git("status", "--porcelain", "--", "*.py", "*.yaml") else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()
