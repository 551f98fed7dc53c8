"""List the benchmarks, or write the page of their committed results: ``python -m benchmarks --list`` or ``--write-results``."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.harness import CODE, RESULTS, benchmarks
from benchmarks.results_page import DOCS, HERE, SUMMARY, page, read_results


def main(arguments: list[str] | None = None) -> None:
    """Print each benchmark with its duration and what it measures, or write the page of results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="List the benchmarks, or write their results.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="list the benchmarks and their durations")
    what.add_argument(
        "--write-results", nargs="?", type=Path, const=DOCS / "results.md", metavar="FILE",
        help="write the committed figures as Markdown, marked where the code has changed since, to docs/results.md if no file "
        "is named",
    )  # fmt: skip
    asked = parser.parse_args(arguments)
    if asked.write_results:
        text = page(read_results(RESULTS, CODE), SUMMARY.read_text(encoding="utf-8"))
        asked.write_results.write_text(text, encoding="utf-8")
        return
    table = Table("run with", "minutes", "measures", box=None)
    for benchmark in benchmarks(HERE):
        table.add_row(f"python -m benchmarks.{benchmark.name}", f"{benchmark.minutes:g}", benchmark.about)
    Console().print(table)


if __name__ == "__main__":
    main()
