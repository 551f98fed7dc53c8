"""``kogata methods``: the survey's table of methods, printed from the code, with advice on when to use each family.

Cheng, Wang, Zhou, Zhang, "A Survey of Model Compression and Acceleration for Deep Neural Networks", arXiv 1710.09282,
table I and its general guidelines.
"""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kogata.cli.options import JsonOption, console, print_json
from kogata.errors import UsageError, unknown

if TYPE_CHECKING:
    from rich.console import Console

    from kogata.methods.base.method import Method

WHEN = {
    "pruning": "A trained model whose accuracy must stay: the steadiest way to fewer bytes. Retrain after it.",
    "sharing": "Right after pruning, for the last factor in bytes; the shared values can be trained further.",
    "quantization": "Any trained model, no training needed: the first thing to try. Comes last in a chain.",
    "low rank": "A trained model with large linear layers must become faster in any engine. Comes first in a chain.",
    "structured": "Large linear layers on a device with little memory: far fewer numbers, multiplied fast. Train after it.",
    "filters": "Convolutions, best trained from scratch or where `inspect --structure` finds the symmetry. Train after it.",
    "distillation": "There is little data, or a step cost accuracy: the original model teaches the smaller one.",
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One method as a row of the table."""

    method: str
    family: str
    layers: list[str]
    data: bool  # needs inputs, for statistics or for training
    labels: bool
    training: bool
    summary: str
    paper: str
    when: str
    settings: list[dict[str, Any]]  # name, type, allowed, required and default of each


def run(
    name: Annotated[str | None, typer.Argument(metavar="[METHOD]", help="Show this method alone, with its settings.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List every method: what it does, what it needs, and when to use it. With a name, also its settings."""
    from kogata.methods import METHODS

    known = {method.ABOUT.name: method for method in METHODS}
    if name is not None and name not in known:
        raise UsageError(f"methods: {name!r} {unknown(name, known)}")
    lines = [line(method) for method in METHODS if name in (None, method.ABOUT.name)]
    if as_json:
        print_json([vars(each) for each in lines])
    elif name is None:
        _print(lines, console())
    else:
        _print_one(lines[0], known[name], console())


def line(method: type[Method]) -> Line:
    """The row of a method with its default settings, from its class."""
    from kogata.settings import described

    about = method.ABOUT
    return Line(
        method=about.name, family=about.family, layers=[str(kind) for kind in about.layers],
        data=bool(about.needs) or about.data or about.training, labels=about.labels, training=about.training,
        summary=about.summary, paper=about.paper, when=WHEN[about.family],
        settings=[asdict(setting) for setting in described(method)],
    )  # fmt: skip


def _print(lines: list[Line], out: Console) -> None:
    from rich.padding import Padding
    from rich.table import Table

    from kogata.report.terminal import safe

    for family, when in WHEN.items():
        out.print(safe(out, f"\n{family}", "bold"))
        out.print(Padding(safe(out, when, "italic"), (0, 0, 1, 2)))
        table = Table.grid(padding=(0, 2, 0, 0))
        for width in (16, 19):
            table.add_column(min_width=width)
        table.add_column()
        for each in (each for each in lines if each.family == family):
            cells = (each.method, f"{_layers(each)}\n{_needs(each)}", f"{each.summary}\n{each.paper}\n")
            table.add_row(*(safe(out, cell) for cell in cells))
        out.print(Padding(table, (0, 0, 0, 2)))


def _print_one(each: Line, method: type[Method], out: Console) -> None:
    """A method with its settings and what its class says about them, in the words of its docstring without the example."""
    from rich.padding import Padding

    from kogata.report.terminal import grid, safe

    out.print(safe(out, f"{each.method}: {each.summary}", "bold"))
    out.print(safe(out, f"{each.family}, {_layers(each)}, {_needs(each)}; {each.paper}", "dim"))
    said = inspect.cleandoc(method.__doc__ or "").partition(">>>")[0].strip().replace("``", "`")
    for paragraph in said.split("\n\n"):
        out.print(Padding(safe(out, " ".join(paragraph.split())), (1, 0, 0, 0)))
    table = grid(out, None, "setting", "allowed", "default")
    for setting in each.settings:
        default = "required" if setting["required"] else "null" if setting["default"] is None else str(setting["default"])
        table.add_row(*(safe(out, cell) for cell in (setting["name"], setting["allowed"], default)))
    out.print(table)


def _layers(each: Line) -> str:
    from kogata.job import Kind

    return "all layers" if len(each.layers) == len(Kind) else ", ".join(each.layers)


def _needs(each: Line) -> str:
    data = "training data" if each.training else "data" if each.data else "no data"
    return f"needs {data}{' with labels' if each.labels else ''}"
