"""The page of results: every figure is on it once, and what cannot be compared is not put side by side."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.harness import Row
from benchmarks.provenance import Code
from benchmarks.results_page import Results, fill, page, read_results

ENVIRONMENT: dict[str, Any] = {
    "cpu": "Some CPU", "threads": 1, "date": "2026-01-02T03:04:05+00:00", "seeds": [0, 1], "commit": "0123456789abcdef",
    "versions": {"torch": "2.9", "onnxruntime": "1.20"},
}  # fmt: skip


def made(*rows: Row, name: str = "sizes", stale: bool = False, commit: str | None = "0123456789abcdef") -> Results:
    return Results(
        name=name, rows=rows, environment=ENVIRONMENT | {"commit": commit}, stale=stale,
        about="Sizes of ``nets``.\n\nOne net.\n\nDone twice.",
    )  # fmt: skip


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


def test_results_of_earlier_code_are_marked_wherever_they_are() -> None:
    row = Row("net", "error", 1.0, "%", bar=2.0, direction="<=")
    results = [made(row, stale=True), made(row, name="times"), made(row, name="tries", stale=True, commit=None)]
    summary = "- errs {times | net | error}\n- errs {sizes | net | error} and\n  {times | net | error}\n- b"
    text = page(results, summary)
    assert "- errs 1 %\n- errs 1 % and 1 % ‡\n- b\n" in text
    assert "2 of 3 benchmarks (‡)." in text
    assert tables(text)[0][1:] == [
        ["[sizes](#sizes) ‡", "`0123456`", "2026-01-02"],
        ["[tries](#tries) ‡", "`unknown`", "2026-01-02"],
    ]
    assert "- [sizes](#sizes) ‡: Sizes" in text
    assert "- [times](#times): Sizes" in text
    assert text.count("**Measured on earlier code** (commit `0123456`, 2026-01-02) ‡") == 1
    assert [line[0] for line in tables(text)[-1][1:]] == ["[sizes](#sizes) ‡", "[times](#times)", "[tries](#tries) ‡"]


def test_results_of_the_present_code_are_said_so() -> None:
    text = page([made(Row("net", "error", 1.0, "%"))], "- errs {sizes | net | error}")
    assert "None: all figures are of the present code" in text
    assert "‡" not in text


@pytest.mark.parametrize(
    ("commit", "said"), [("0123456789+changes", "`0123456` and changes to it"), ("0123456789", "`0123456`")]
)
def test_a_commit_with_changes_is_said_so(commit: str, said: str) -> None:
    assert made(commit=commit).commit == said


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
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "sizes.py").write_text('"""What it measures."""\nSEED = 0')
    code = Code.read(tmp_path)
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
    kept = {"environment": ENVIRONMENT | {"code": code.digest("sizes")}, "rows": [row]}
    (tmp_path / "sizes.json").write_text(json.dumps(kept))
    (read,) = read_results(tmp_path, code)
    assert (read.name, read.about, read.rows[0].holds, read.stale) == ("sizes", "What it measures.", False, False)
    assert math.isnan(read.rows[0].value)
    (tmp_path / "benchmarks" / "sizes.py").write_text('"""What it measures."""\nSEED = 1')
    assert read_results(tmp_path, Code.read(tmp_path))[0].stale
    (tmp_path / "sizes.json").write_text(json.dumps({"environment": ENVIRONMENT, "rows": [row]}))  # of which code is unknown
    assert read_results(tmp_path, code)[0].stale
    (tmp_path / "gone.json").write_text(json.dumps({"environment": ENVIRONMENT, "rows": []}))
    with pytest.raises(ValueError, match=r"gone\.py"):
        read_results(tmp_path, code)


def test_the_command_writes_where_it_is_told(tmp_path: Path) -> None:
    main(["--write-results", str(tmp_path / "page.md")])
    assert "## Every figure with a bar" in (tmp_path / "page.md").read_text(encoding="utf-8")
