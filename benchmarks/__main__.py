"""List the benchmarks: ``python -m benchmarks --list``."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.harness import benchmarks


def main() -> None:
    """Print each benchmark with how long it takes and what it measures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="List the benchmarks.")
    parser.add_argument("--list", action="store_true", required=True, help="name each with what it takes")
    parser.parse_args()
    table = Table("run with", "minutes", "measures", box=None)
    for benchmark in benchmarks(Path(__file__).parent):
        table.add_row(f"python -m benchmarks.{benchmark.name}", f"{benchmark.minutes:g}", benchmark.about)
    Console().print(table)


if __name__ == "__main__":
    main()
