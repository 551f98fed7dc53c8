"""``kogata report``: show the report of a run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kogata.cli.options import JsonOption, console, print_json


def run(
    where: Annotated[Path, typer.Argument(metavar="DIR|JSON", help="The folder of a run, or its report.json.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the HTML page to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the report of a finished run."""
    import json

    from kogata.report import html as page
    from kogata.report import terminal
    from kogata.report.data import Report

    path = where / "report.json" if where.is_dir() else where
    report = Report.load(path)
    if html is not None:
        page.write(report, html)
    if as_json:
        print_json(json.loads(path.read_text(encoding="utf-8")))
    else:
        terminal.render(report, console())
