"""``kogata compress``: compress a task's model by a recipe into a folder with one small file and its report."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kogata.cli.options import (
    RECIPES,
    DataOption,
    EngineName,
    EngineOption,
    ExplainOption,
    JsonOption,
    SeedOption,
    TaskArgument,
    complete_recipe,
    console,
    print_json,
)
from kogata.errors import TargetMissed, UsageError

if TYPE_CHECKING:
    from torch import nn

    from kogata.job import Task
    from kogata.recipes.recipe import Recipe
    from kogata.report.data import Report
    from kogata.storage.folder import Folder

RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe", metavar="NAME|YAML", autocompletion=complete_recipe,
        help=f"A YAML file, or a recipe that comes with Kogata: {', '.join(RECIPES)}. Methods of other packages are named "
        "package.module:Class; install the package, or name its folder in PYTHONPATH. Default with --bytes: budget; with "
        "--drop alone: small.",
    ),
]  # fmt: skip
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", file_okay=False, help="Folder of the run: new or empty.")
]


def run(
    task: TaskArgument,
    output: OutputOption,
    recipe: RecipeOption = None,
    bytes_: Annotated[
        str | None, typer.Option("--bytes", metavar="SIZE", help="Size of the whole file to aim at, such as 2.3MB, 1/20 or 5%.")
    ] = None,
    seed: SeedOption = 0,
    data: DataOption = None,
    engine: EngineOption = EngineName.ONNXRUNTIME,
    size: Annotated[str | None, typer.Option(help="Target for the file, such as 1/20, 5% or 20kB.")] = None,
    drop: Annotated[str | None, typer.Option(help="Target for the drop of the score, such as 0.5pt.")] = None,
    latency: Annotated[str | None, typer.Option(help="Target for the latency of one sample, such as 60% or 3ms.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")] = False,
    explain: ExplainOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the resolved recipe, and write nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compress a task's model by a recipe, and measure the result.

    Targets given here override those of the recipe. If a target is missed, the result is still written and shown, and the exit
    code is 3.
    """
    from kogata.flow import compress
    from kogata.storage.folder import Folder
    from kogata.tasks.taskfile import open_task

    asked = {goal: text for goal, text in (("size", size), ("drop", drop), ("latency", latency)) if text is not None}
    plan = _with_targets(_opened(recipe, bytes_, drop), asked)
    if dry_run:
        _preview(*open_task(task, seed, data), plan, seed, engine, as_json)
        return
    goals = ({} if bytes_ is None else {"bytes": bytes_}) | asked
    command = _command(task, recipe, output, seed, data, engine, goals, explain)

    def start() -> Report:
        model, opened = open_task(task, seed, data)
        return compress(
            model, opened, plan, output=output, seed=seed, engine=engine.engine(), resume=resume, explain=explain,
            command=command,
        ).report  # fmt: skip

    carry_out(start, Folder(output), task, plan, seed, command, resume=resume, as_json=as_json)


def carry_out(
    start: Callable[[], Report],
    folder: Folder,
    task: str,
    plan: Recipe,
    seed: int,
    command: str,
    *,
    resume: bool,
    as_json: bool,
) -> None:
    """Run, or find the run finished, and show its report. ``command`` with ``--resume`` continues an interrupted run."""
    if resume and folder.finished:
        report = _finished(folder, task, plan, seed)
    else:
        try:
            report = start()
        except KeyboardInterrupt:
            typer.echo(f"Interrupted. To go on: {command} --resume", err=True)
            raise typer.Exit(130) from None
    if os.environ.get("RANK", "0") != "0":
        return  # of several processes only the first one prints
    _show(report, folder, as_json)
    if report.missed:
        raise TargetMissed(f"the result misses what was asked for: {'; '.join(report.missed)}.")


def _opened(recipe: str | None, size: str | None, drop: str | None) -> Recipe:
    """The recipe, with the goal of its quantizer. Raises UsageError when nothing says what to do."""
    from kogata.methods import RateOBS
    from kogata.recipes.budgets import with_goal
    from kogata.recipes.recipe import open_recipe

    if size is not None:
        return with_goal(open_recipe(recipe or "budget"), RateOBS(bytes=size))
    if recipe is None and drop is not None:
        return with_goal(open_recipe("small"), RateOBS(drop=drop))
    if recipe is None:
        raise UsageError(
            f"give --recipe ({', '.join(RECIPES)}, or a YAML file), or a goal alone: --bytes 2.3MB or --drop 0.5pt."
        )
    return open_recipe(recipe)


def _with_targets(recipe: Recipe, asked: dict[str, str]) -> Recipe:
    from kogata.recipes import targets

    wanted = {target.goal: target.text for target in recipe.targets} | asked
    return dataclasses.replace(recipe, targets=targets.parse(wanted))


def _command(
    task: str, recipe: str | None, output: Path, seed: int, data: Path | None, engine: EngineName, goals: dict[str, str],
    explain: bool,
) -> str:  # fmt: skip
    """The command line that gives the same bytes again."""
    words = ["kogata", "compress", task, *(["--recipe", recipe] if recipe is not None else []), "-o", str(output)]
    words += ["--seed", str(seed), "--engine", engine]
    if data is not None:
        words += ["--data", str(data)]
    for goal, text in goals.items():
        words += [f"--{goal}", text]
    words += ["--explain"] if explain else []
    return shlex.join(words)


def _finished(folder: Folder, task: str, recipe: Recipe, seed: int) -> Report:
    """The report of a finished run. Raises UsageError when its task, recipe or seed differ."""
    from kogata.report.data import Report

    report = Report.load(folder.report)
    if (report.task, report.recipe, report.seed) != (Path(task).stem, _plain(recipe), seed):
        raise UsageError(f"{folder.path}: holds a finished run of another task, recipe or seed. Choose another folder with -o.")
    folder.finish()  # a run may have been killed before it could
    return report


def _show(report: Report, folder: Folder, as_json: bool) -> None:
    from kogata.report import terminal

    if as_json:
        print_json(json.loads(folder.report.read_text(encoding="utf-8")))
    else:
        out = console()
        terminal.render(report, out)
        out.print(terminal.safe(out, f"Report: {folder.page}"), soft_wrap=True)


def _preview(model: nn.Module, task: Task, recipe: Recipe, seed: int, engine: EngineName, as_json: bool) -> None:
    """Print the resolved recipe and the weights of each step, as YAML that is itself a valid recipe."""
    import yaml

    from kogata.calibration.prepare import first_job
    from kogata.methods.base.order import check_order, planned_steps
    from kogata.recipes.targets import check_measurable

    check_measurable(recipe.targets, scored=task.evaluate is not None, timed=engine is not EngineName.NONE)
    job = first_job(model, task, seed=seed)
    check_order(recipe.method, job)
    steps = planned_steps(recipe.method, job)
    if as_json:
        print_json({"recipe": _plain(recipe), "steps": [{"method": name, "sites": sites} for name, sites in steps]})
        return
    print(yaml.safe_dump(_plain(recipe), sort_keys=False, allow_unicode=True, width=120), end="")
    print("# What each step will try:")
    for number, (name, sites) in enumerate(steps, 1):
        print(f"#   {number}. {name}: {'the whole model' if sites is None else ', '.join(sites)}")


def _plain(recipe: Recipe) -> Any:
    """The resolved recipe as plain JSON values."""
    return json.loads(json.dumps(recipe.resolved(), default=str))
