"""List the benchmarks, or print their committed results: ``python -m benchmarks --list`` or ``--results``."""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.harness import RESULTS, benchmarks


def results(folder: Path) -> str:
    """Every committed figure that has a bar, as a Markdown table: what the README shows."""
    lines = ["| command | case | figure | value | bar |", "|---|---|---|---|---|"]
    for path in sorted(folder.glob("*.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            if row["bar"] is None:
                continue
            sign = {"<=": "≤", ">=": "≥"}[row["direction"]]
            value = f"{row['value']:,.4g}" if row["value"] < 1000 else f"{row['value']:,.0f}"
            miss = "" if row["holds"] else " (missed)"
            lines.append(
                f"| `python -m benchmarks.{path.stem}` | {row['case']} | {row['metric']} | {value} {row['unit']} "
                f"| {sign} {row['bar']:,.6g}{miss} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Print each benchmark with how long it takes and what it measures, or the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="List the benchmarks, or their results.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="name each with what it takes")
    what.add_argument("--results", action="store_true", help="the committed figures that have a bar, as Markdown")
    if parser.parse_args().results:
        print(results(RESULTS))
        return
    table = Table("run with", "minutes", "measures", box=None)
    for benchmark in benchmarks(Path(__file__).parent):
        table.add_row(f"python -m benchmarks.{benchmark.name}", f"{benchmark.minutes:g}", benchmark.about)
    Console().print(table)


if __name__ == "__main__":
    main()
