"""Write the page ``docs/results.md`` from the committed results alone; no figure on it is typed by hand.

Its opening is ``results_summary.md``, sentences in which ``{benchmark | case | metric}`` stands for a figure. Then come the
bars that are missed, the results that were measured on earlier code, tables of all figures, and all bars. The description of a
benchmark is its docstring.
"""

import ast
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Row
from benchmarks.provenance import Code

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
SUMMARY = HERE / "results_summary.md"
SIGNS = {"<=": "≤", ">=": "≥"}
MISSED = " †"
EARLIER = " ‡"


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of one benchmark: its figures, the machine they were measured on, and its docstring.

    They are ``stale`` if the code that they depend on has changed since, or if it is not known which it was.
    """

    name: str
    rows: tuple[Row, ...]
    environment: dict[str, Any]
    about: str
    stale: bool = False

    @property
    def mark(self) -> str:
        """The sign beside each figure that was measured on earlier code."""
        return EARLIER if self.stale else ""

    @property
    def commit(self) -> str:
        """The commit that the figures are of, in short, and its changes that were not committed."""
        commit, _, changes = (self.environment.get("commit") or "unknown").partition("+")
        return f"`{commit[:7]}`" + (" and changes to it" if changes else "")

    @property
    def date(self) -> str:
        """The day on which the figures were measured."""
        return self.environment["date"][:10]


def read_results(folder: Path, code: Code) -> list[Results]:
    """Read each ``NAME.json`` of ``folder`` beside the module ``benchmarks.NAME`` of ``code``, by name.

    :raises ValueError: there are results of a benchmark that no longer exists.
    """
    found: list[Results] = []
    for path in sorted(folder.glob("*.json")):
        kept, digest = json.loads(path.read_text(encoding="utf-8")), code.digest(path.stem)
        found.append(Results(
            name=path.stem, rows=tuple(map(_row, kept["rows"])), environment=kept["environment"],
            about=ast.get_docstring(ast.parse(code.texts[f"benchmarks.{path.stem}"])) or "",
            stale=kept["environment"].get("code") != digest,
        ))  # fmt: skip
    return found


def page(results: Sequence[Results], summary: str) -> str:
    """Return the whole page as Markdown.

    :param summary: the opening, whose placeholders ``{benchmark | case | metric}`` become figures.
    :raises ValueError: a placeholder names no figure, or more than one.
    """
    barred = [(each, row) for each in results for row in each.rows if row.bar is not None]
    missed = [(each, row) for each, row in barred if not row.holds]
    held = f"{len(barred) - len(missed)} of {len(barred)} bars hold."
    return "\n\n".join([
        "<!-- Made by `python -m benchmarks --write-results`; do not edit. -->",
        fill(summary, results).strip(),
        "## Bars that are missed",
        f"{held} Missed are:\n\n{bars(missed)}" if missed else held,
        "## Measured on earlier code",
        earlier(results),
        "## Benchmarks",
        "\n".join(f"- [{each.name}](#{each.name}){each.mark}: {_code(each.about.partition(chr(10))[0])}" for each in results),
        *(section(each) for each in results),
        "## Every figure with a bar",
        bars(barred),
    ]) + "\n"  # fmt: skip


def fill(summary: str, results: Sequence[Results]) -> str:
    """Return the text with each ``{benchmark | case | metric}`` replaced by a figure and its unit, one line per item.

    A line with a figure that was measured on earlier code ends in a mark.

    :raises ValueError: a placeholder names no figure, or more than one.
    """
    marks: list[str] = []

    def figure(match: re.Match[str]) -> str:
        key = tuple(part.strip() for part in match[1].split("|"))
        found = [(each, row) for each in results for row in each.rows if (each.name, row.case, row.metric) == key]
        if len(found) != 1:
            raise ValueError(f"{match[0]} names {len(found)} figures of the results; expected one: benchmark | case | metric")
        ((source, row),) = found
        marks.append(source.mark)
        return f"{_number(row.value)}×" if row.unit.startswith("x") else _measured(row)

    lines: list[str] = []
    for line in summary.replace("\n  ", " ").splitlines():
        marks.clear()
        lines.append(re.sub(r"\{([^{}]+)\}", figure, line) + max(marks, default=""))
    return "\n".join(lines)


def earlier(results: Sequence[Results]) -> str:
    """Return which results are of code that has changed since, with commit and date, as a table."""
    stale = [each for each in results if each.stale]
    if not stale:
        return "None: all figures are of the present code, by a digest of the source that they depend on."
    lines = [[_link(each), each.commit, each.date] for each in stale]
    return (
        f"{len(stale)} of {len(results)} benchmarks (‡). By a digest of the source, code that their figures depend on has "
        "changed since; whether the figures have changed is not known.\n\n" + _table(["benchmark", "commit", "date"], lines)
    )


def section(results: Results) -> str:
    """Return one benchmark's command, place and date, method, picture, figures and notes."""
    first, _, rest = results.about.partition("\n")
    where = results.environment
    versions = ", ".join(f"{name} {where['versions'][name]}" for name in ("torch", "onnxruntime"))
    place = (
        f"{where['cpu']}; threads: {where['threads']}; {versions}; {results.date}; seeds: {', '.join(map(str, where['seeds']))}"
    )
    picture = f"{results.name}.svg"
    parts = [
        f"### {results.name}",
        _code(first),
        f"`python -m benchmarks.{results.name}` ({place})",
        f"**Measured on earlier code** (commit {results.commit}, {results.date}){EARLIER}" if results.stale else "",
        _folded("How it is measured", _code(rest.strip())) if rest.strip() else "",
        f"![{_code(first)}]({picture})" if (DOCS / picture).exists() else "",
        *map(_figures, _groups(results.rows)),
        _notes(results.rows),
    ]
    return "\n\n".join(part for part in parts if part)


def bars(rows: Sequence[tuple[Results, Row]]) -> str:
    """Return the figures that have a bar as a table."""
    return _table(
        ["benchmark", "case", "figure", "value", "bar", "what the bar is"],
        [
            [
                _link(each), row.case, row.metric, _measured(row) + ("" if row.holds else MISSED),
                f"{SIGNS[str(row.direction)]} {row.bar:,.6g}", row.note,
            ]
            for each, row in rows
        ],
    )  # fmt: skip


def _link(results: Results) -> str:
    return f"[{results.name}](#{results.name}){results.mark}"


def _row(kept: dict[str, Any]) -> Row:
    value = math.nan if kept["value"] is None else kept["value"]
    return Row(**{key: kept[key] for key in ("case", "metric", "unit", "bar", "direction", "note")}, value=value)


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Group the rows into tables: cases with a metric in common share a table, so that they can be compared."""
    groups: list[list[Row]] = []
    for row in rows:
        related = [
            group for group in groups if any(row.case == other.case or _metric(row) == _metric(other) for other in group)
        ]
        groups = [group for group in groups if group not in related]
        groups.append([*(other for group in related for other in group), row])
    order = {id(row): place for place, row in enumerate(rows)}
    ordered = [sorted(group, key=lambda row: order[id(row)]) for group in groups]
    return sorted(ordered, key=lambda group: order[id(group[0])])


def _figures(rows: Sequence[Row]) -> str:
    """Return a table with one row for each case, or for each metric if there are more than twice as many metrics."""
    cases, metrics = list(dict.fromkeys(row.case for row in rows)), list(dict.fromkeys(map(_metric, rows)))
    cells = {(row.case, _metric(row)): _number(row.value) + (MISSED if row.holds is False else "") for row in rows}
    if len(metrics) > 2 * len(cases):
        return _table(["figure", *cases], [[metric, *(cells.get((case, metric), "") for case in cases)] for metric in metrics])
    return _table(["case", *metrics], [[case, *(cells.get((case, metric), "") for metric in metrics)] for case in cases])


def _notes(rows: Sequence[Row]) -> str:
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            notes.setdefault(row.note, []).append(f"{row.case}: {row.metric}")
    lines = [f"- {note} ({'; '.join(places)})" for note, places in notes.items()]
    return _folded("Notes", "\n".join(lines)) if lines else ""


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _metric(row: Row) -> str:
    return f"{row.metric} ({row.unit})" if row.unit else row.metric


def _measured(row: Row) -> str:
    return f"{_number(row.value)} {row.unit}".strip()


def _number(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _code(docstring: str) -> str:
    return docstring.replace("``", "`")


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows)
