"""The report as tables for a terminal: 80 columns or wider, a pipe, or ASCII only."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kogata.report.data import Report, Side
from kogata.report.rows import TableRow, layer_rows, total_row
from kogata.report.words import (
    NOTHING,
    change,
    notes,
    number,
    rate,
    score,
    score_change,
    score_decimals,
    share,
    size,
    size_change,
    speed,
)

LIMIT = 20  # layers listed; the rest are summed
WIDE = 100  # console width from which the form has a column of its own

_ASCII = str.maketrans({"→": "->", "−": "-", "–": "-", "×": "x", "·": "|", "α": "alpha", "β": "beta", "δ": "delta", "≥": ">="})
_CONTROL = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if code != 10}


def render(report: Report, console: Console) -> None:
    """Print the report. Names and notes are printed literally: markup and escape sequences in them have no effect."""
    console.print()
    console.print(safe(console, report.title, "bold"))
    console.print(safe(console, f"task {report.task} · {_engine(report)} · seed {report.seed}", "dim"))
    console.print(_headline(report, console))
    if report.layers:
        console.print(_layers(report, console))
    if report.rest_bytes:
        console.print(_rest(report, console))
    if report.steps:
        console.print(_steps(report, console))
    _list(console, "Notes", notes(report), "")
    if report.targets and not report.missed:
        wanted = ", ".join(f"{name} {value}" for name, value in report.targets.items())
        _list(console, "Targets", (f"all met: {wanted}",), "")
    _list(console, "Missed targets", report.missed, "bold red")


def _engine(report: Report) -> str:
    return f"engine {report.engine}" if report.engine else "no engine"


def safe(console: Console, text: str, style: str = "") -> Text:
    """Literal text without markup or control characters, reduced to ASCII where the terminal has no Unicode."""
    text = text.translate(_CONTROL)
    if console.options.ascii_only:
        text = text.translate(_ASCII).encode("ascii", "replace").decode()
    return Text(text, style=style)


def grid(console: Console, title: str | None, *columns: str) -> Table:
    """A table whose first column is text and whose others are numbers."""
    table = Table(
        title=safe(console, title, "bold") if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for position, column in enumerate(columns):
        justify = "right" if position else "left"
        # long sites wrap over lines; numbers must not
        table.add_column(safe(console, column), justify=justify, no_wrap=position > 0, overflow="fold")
    return table


def _headline(report: Report, console: Console) -> Table:
    dense, compressed, decimals = report.dense, report.compressed, score_decimals(report)
    said = speed(report)
    if report.delta is not None:
        said += " (δ)" if said.endswith("faster") else f" (δ {rate(report.delta)})"
    lines = (
        ("bytes", f"{dense.bytes:,}", f"{compressed.bytes:,}", f"{size_change(report)} (α)"),
        ("", "", "", f"{share(dense.bytes - compressed.bytes, dense.bytes)} saved (β)"),
        ("score", score(dense.score, decimals), score(compressed.score, decimals), score_change(report)),
        ("ms, median", _median(dense), _median(compressed), said),
        ("stored values", f"{dense.parameters:,}", f"{compressed.parameters:,}", ""),
    )
    table = grid(console, None, "", *report.names)
    table.add_column("")
    for line in lines:
        table.add_row(*(safe(console, cell, "bold" if i == 3 else "") for i, cell in enumerate(line)))
    return table


def _median(side: Side) -> str:
    if side.latency_ms is None:
        return NOTHING
    return number(side.latency_ms.p50) + (", noisy" if side.latency_ms.noisy else "")


def _layers(report: Report, console: Console) -> Table:
    wide = console.width >= WIDE
    columns = ("site", "form", "values", "bytes", "bits/w", "ms")
    narrow = ("site", "values", "bytes", "ms")  # the form is shown below the site, as there is no room for a column
    last = (report.changes,) if report.changes else ()
    table = grid(console, "Layers", *(columns if wide else narrow), *last)
    if wide:
        table.columns[1].justify = "left"
        table.columns[1].no_wrap = False
    for row in layer_rows(report, LIMIT):
        table.add_row(*_cells(row, console, wide), *_change(row, console, last))
    table.add_section()
    table.add_row(*_cells(total_row(report), console, wide), style="bold")
    return table


def _cells(row: TableRow, console: Console, wide: bool) -> list[Text]:
    site, form = safe(console, row.site.replace("\n", " ")), safe(console, row.form.replace("\n", " "), "dim")
    names = [site, form] if wide else [Text("\n").join([site, form]) if row.form else site]
    return names + [
        safe(console, cell)
        for cell in (
            f"{row.parameters:,}",
            f"{size(row.dense_bytes)} → {size(row.bytes)}",
            *((number(row.bits_per_weight),) if wide else ()),
            NOTHING if row.dense_ms is None and row.ms is None else f"{number(row.dense_ms)} → {number(row.ms)}",
        )
    ]


def _change(row: TableRow, console: Console, columns: tuple[str, ...]) -> list[Text]:
    """The cell of the last column, if there is one."""
    return [safe(console, change(name, row.loss, row.increase, row.error)) for name in columns]


def _rest(report: Report, console: Console) -> Table:
    table = grid(console, "Rest of the file", "part", "bytes", "of the file")
    for part, count in report.rest_bytes.items():
        cells = (part, f"{count:,}", share(count, report.compressed.bytes))
        table.add_row(*(safe(console, cell) for cell in cells))
    return table


def _steps(report: Report, console: Console) -> Table:
    table = grid(console, "Steps", "step", "seconds", "estimated size", "loss after")
    for step in report.steps:
        sizes = f"{size(step.bits_before / 8)} → {size(step.bits_after / 8)}"
        cells = (step.name, number(step.seconds), sizes, number(step.loss))
        table.add_row(*(safe(console, cell) for cell in cells))
    table.add_section()
    table.add_row("all steps", safe(console, number(sum(step.seconds for step in report.steps))), style="bold")
    return table


def _list(console: Console, title: str, lines: tuple[str, ...], style: str) -> None:
    if not lines:
        return
    console.print(safe(console, title, style or "bold"))
    for line in lines:
        console.print(Padding(safe(console, line, style), (0, 0, 0, 2)))
    console.print()
