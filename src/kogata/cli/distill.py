"""``kogata distill``: train another network with a task's model as its teacher, into a folder with a file and its report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kogata.cli import compress as compressing
from kogata.cli.options import (
    DataOption,
    EngineName,
    EngineOption,
    ExplainOption,
    JsonOption,
    SeedOption,
    TaskArgument,
    complete_recipe,
)
from kogata.errors import UsageError

if TYPE_CHECKING:
    from kogata.recipes.recipe import Recipe
    from kogata.report.data import Report

StudentOption = Annotated[
    str, typer.Option("--student", metavar="FILE.py:FUNCTION", help="A function that returns the student network.")
]
TermOption = Annotated[
    list[str] | None,
    typer.Option(
        "--term", metavar="[WEIGHT*]NAME",
        help="A term of the loss, such as 0.9*soft-targets; several are summed. Terms that compare layers need a recipe. "
        "Default: 0.5*labels and 0.5*soft-targets, or the teacher's output alone if there are no labels.",
    ),
]  # fmt: skip


def run(
    task: TaskArgument,
    student: StudentOption,
    output: compressing.OutputOption,
    term: TermOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", metavar="NAME|YAML", autocompletion=complete_recipe,
            help="Steps for the student, such as recover with a term on layers; replaces --term, --epochs and so on.",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training data (10).")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Initial learning rate of AdamW (0.001).")] = None,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="DIR", file_okay=False, help="Folder to cache the teacher's outputs in; for fixed inputs."),
    ] = None,
    seed: SeedOption = 0,
    data: DataOption = None,
    engine: EngineOption = EngineName.ONNXRUNTIME,
    explain: ExplainOption = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")] = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Train another network with a task's model as its teacher, and measure the result beside the teacher.

    A checkpoint is written after every epoch. To keep the best epoch on held-out data, set patience in a recipe's recover step.
    """
    from kogata.flow import compress
    from kogata.recipes.recipe import open_recipe
    from kogata.storage.folder import Folder
    from kogata.tasks.taskfile import open_network, open_task

    settings = {"epochs": epochs, "learning_rate": learning_rate, "cache": None if cache is None else str(cache)}
    given = {key: value for key, value in settings.items() if value is not None}
    if recipe is not None and (given or term):
        raise UsageError("--recipe defines the training; leave out --term, --epochs, --learning-rate and --cache.")
    plan = open_recipe(recipe) if recipe is not None else _plan(given, term or [])
    command = _command(task, student, output, term or [], recipe, given, seed, data, engine, explain)

    def start() -> Report:
        teacher, opened = open_task(task, seed, data)
        return compress(
            open_network(student, seed), opened, plan, teacher=teacher, output=output, seed=seed, engine=engine.engine(),
            resume=resume, explain=explain, command=command,
        ).report  # fmt: skip

    compressing.carry_out(start, Folder(output), task, plan, seed, command, resume=resume, as_json=as_json)


def _plan(settings: Mapping[str, object], terms: list[str]) -> Recipe:
    """A recipe of one recovery step, checked like any recipe."""
    import yaml

    from kogata.recipes.recipe import parse

    step: dict[str, object] = {"method": "recover", "epochs": 10, **settings}
    if terms:
        step["term"] = [_weighted(text) for text in terms]
    return parse(yaml.safe_dump({"name": "distill", "steps": [step]}), "of the options")


def _weighted(text: str) -> dict[str, object]:
    """Parse a term with an optional weight, such as ``0.9*soft-targets``."""
    weight, times, name = text.rpartition("*")
    try:
        return {"term": name, "weight": float(weight) if times else 1.0}
    except ValueError:
        raise UsageError(f"--term {text!r}: expected a name, or a weight and a name such as 0.9*soft-targets.") from None


def _command(
    task: str, student: str, output: Path, terms: list[str], recipe: str | None, settings: Mapping[str, object], seed: int,
    data: Path | None, engine: EngineName, explain: bool,
) -> str:  # fmt: skip
    """The command line that gives the same bytes again."""
    words = ["kogata", "distill", task, "--student", student, "-o", str(output), "--seed", str(seed), "--engine", engine]
    for term in terms:
        words += ["--term", term]
    for key, value in settings.items():
        words += [f"--{key.replace('_', '-')}", str(value)]
    if recipe is not None:
        words += ["--recipe", recipe]
    if data is not None:
        words += ["--data", str(data)]
    words += ["--explain"] if explain else []
    return shlex.join(words)
