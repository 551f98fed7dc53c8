"""The page of results: every figure is on it once, and what cannot be compared is not put side by side."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.harness import Row
from benchmarks.results_page import Results, fill, page, read_results

ENVIRONMENT: dict[str, Any] = {
    "cpu": "Some CPU", "threads": 1, "date": "2026-01-02T03:04:05+00:00", "seeds": [0, 1],
    "versions": {"torch": "2.9", "onnxruntime": "1.20"},
}  # fmt: skip


def made(*rows: Row, name: str = "sizes") -> Results:
    return Results(name=name, rows=rows, environment=ENVIRONMENT, about="Sizes of ``nets``.\n\nOne net.\n\nDone twice.")


def tables(text: str) -> list[list[list[str]]]:
    """Every table of a Markdown text as its rows of cells, the rule under the head left out."""
    blocks = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines() if "---" not in line]
        for block in blocks
    ]


def test_cases_that_share_a_figure_share_a_table() -> None:
    text = page(
        [
            made(
                Row("dense", "error", 1, "%"),
                Row("a", "bytes", 2000, "B"),
                Row("b", "speed", 3, "x"),
                Row("a", "error", 4, "%"),
            )
        ],
        "",
    )
    assert tables(text)[:2] == [
        [["case", "error (%)", "bytes (B)"], ["dense", "1", ""], ["a", "4", "2,000"]],
        [["case", "speed (x)"], ["b", "3"]],
    ]


def test_many_figures_of_few_cases_stand_below_each_other() -> None:
    text = page([made(*(Row("net", f"m{n}", n, "") for n in range(3)))], "")
    assert tables(text)[0] == [["figure", "net"], ["m0", "0"], ["m1", "1"], ["m2", "2"]]


def test_the_same_metric_in_another_unit_is_another_figure() -> None:
    text = page([made(Row("net", "encode", 2, "MB/s"), Row("net", "encode", 3, "x"))], "")
    assert tables(text)[0] == [["case", "encode (MB/s)", "encode (x)"], ["net", "2", "3"]]


def test_a_missed_bar_is_marked_and_comes_first() -> None:
    held = Row("net", "error", 1.5, "%", bar=2.0, direction="<=", note="the paper's")
    missed = Row("other", "error", math.nan, "%", bar=2.0, direction="<=")
    text = page([made(held, missed)], "")
    first, figures, last = tables(text)
    assert "1 of 2 bars hold" in text
    assert [row[1:5] for row in first[1:]] == [["other", "error", "nan % †", "≤ 2"]]
    assert figures[1:] == [["net", "1.5"], ["other", "nan †"]]
    assert [row[1:] for row in last[1:]] == [
        ["net", "error", "1.5 %", "≤ 2", "the paper's"],
        ["other", "error", "nan % †", "≤ 2", ""],
    ]


def test_a_section_says_how_and_where() -> None:
    text = page([made(Row("net", "error", 1, "%", note="twice"))], "# Title")
    assert text.startswith("<!--")
    for part in (
        "# Title", "Sizes of `nets`.", "`python -m benchmarks.sizes` (Some CPU; threads: 1; torch 2.9, onnxruntime 1.20; "
        "2026-01-02; seeds: 0, 1)", "<details><summary>How it is measured</summary>\n\nOne net.\n\nDone twice.\n\n</details>",
        "- twice (net: error)",
    ):  # fmt: skip
        assert part in text


def test_the_summary_takes_its_figures_from_the_results() -> None:
    results = [made(Row("net, small", "error", 1.25, "%"), Row("net, small", "time", 0.5, "x faster"))]
    summary = "- errs {sizes | net, small | error} and\n  runs {sizes | net, small | time} as fast\n- b"
    assert fill(summary, results) == "- errs 1.25 % and runs 0.5× as fast\n- b"


@pytest.mark.parametrize("key", ["sizes | net | erors", "size | net | error", "sizes | net | twice", "no figure"])
def test_a_figure_that_is_not_there_is_told(key: str) -> None:
    results = [made(Row("net", "error", 1, "%"), Row("net", "twice", 1, "s"), Row("net", "twice", 2, "x"))]
    with pytest.raises(ValueError, match=re.escape(f"{{{key}}} names")):
        fill(f"It errs {{{key}}}.", results)


def test_results_are_read_beside_the_source(tmp_path: Path) -> None:
    (tmp_path / "sizes.py").write_text('"""What it measures."""')
    row = {
        "case": "net",
        "metric": "error",
        "value": None,
        "unit": "%",
        "bar": 1.0,
        "direction": "<=",
        "note": "",
        "holds": False,
    }
    (tmp_path / "sizes.json").write_text(json.dumps({"environment": ENVIRONMENT, "rows": [row]}))
    (read,) = read_results(tmp_path, tmp_path)
    assert (read.name, read.about, read.rows[0].holds) == ("sizes", "What it measures.", False)
    assert math.isnan(read.rows[0].value)
    (tmp_path / "gone.json").write_text(json.dumps({"environment": ENVIRONMENT, "rows": []}))
    with pytest.raises(FileNotFoundError, match=r"gone\.py"):
        read_results(tmp_path, tmp_path)


def test_the_command_writes_where_it_is_told(tmp_path: Path) -> None:
    main(["--write-results", str(tmp_path / "page.md")])
    assert "## Every figure with a bar" in (tmp_path / "page.md").read_text(encoding="utf-8")
