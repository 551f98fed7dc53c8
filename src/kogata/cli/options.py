"""Options and output that several commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from kogata.engines import Engine
    from kogata.forms import Form

# A copy of the names in kogata.tasks.builtin, which is too slow to import for shell completion; a test compares the two.
TASKS = (
    "fashion-lenet300", "fashion-lenet5", "mnist-lenet300", "mnist-lenet5", "digits-mlp", "cifar-vgg", "cifar-vgg-small",
    "cifar-resnet20", "cifar-resnet20-small", "cifar-resnet56", "cifar-nin", "cifar-allcnn",
)  # fmt: skip
RECIPES = tuple(
    sorted(
        entry.name.removesuffix(".yaml") for entry in (files("kogata") / "recipes").iterdir() if entry.name.endswith(".yaml")
    )
)


class EngineName(StrEnum):
    """The names of the engines of kogata.engines, and "none"."""

    ONNXRUNTIME = "onnxruntime"
    EAGER = "eager"
    NONE = "none"

    def engine(self) -> Engine | None:
        """The engine of this name; None for "none"."""
        from kogata.engines import ENGINES

        return next((engine() for engine in ENGINES if engine.name == self), None)


def forms_of(references: list[str] | None) -> tuple[type[Form], ...]:
    """The classes that ``--form`` names. Raises UsageError for what is no form."""
    from kogata.forms import Form
    from kogata.recipes.references import imported

    return tuple(imported(reference, Form, "--form") for reference in references or ())


def complete_task(incomplete: str) -> Iterator[str]:
    """The built-in tasks with this prefix; the shell itself completes paths."""
    return (name for name in TASKS if name.startswith(incomplete))


def complete_recipe(incomplete: str) -> Iterator[str]:
    """The built-in recipes with this prefix."""
    return (name for name in RECIPES if name.startswith(incomplete))


TASK_HELP = f"A task file (a path that ends in .py) or a built-in task: {', '.join(TASKS)}."

TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help=TASK_HELP, autocompletion=complete_task)]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", exists=True, file_okay=False,
        help="Folder with mnist/, fashion-mnist/ and cifar10/ for built-in tasks. Default: $KOGATA_DATA, the usual places.",
    ),
]  # fmt: skip
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same bytes.")]
EngineOption = Annotated[EngineName, typer.Option("--engine", help="Engine for measuring speed; none measures no speed.")]
FormsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--form", metavar="MODULE:CLASS",
        help="A form of another package that the file holds; may be repeated. Importing it runs the code of its module.",
    ),
]  # fmt: skip
JsonOption = Annotated[bool, typer.Option("--json", help="Print only JSON on standard output.")]
ExplainOption = Annotated[
    bool,
    typer.Option(
        "--explain",
        help="Also report what the change of each layer alone does to the loss on the first calibration batch: one forward "
        "for each, for the 64 layers of a step whose weights changed most.",
    ),
]


def print_json(value: object) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def console() -> Console:
    """A console on standard output; it uses colours and the width of the terminal if there is one."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False)
