"""``kogata bench``: measure a compressed file again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kogata.cli.options import (
    TASK_HELP,
    DataOption,
    EngineName,
    EngineOption,
    FormsOption,
    JsonOption,
    SeedOption,
    complete_task,
    console,
    forms_of,
    print_json,
)

if TYPE_CHECKING:
    from kogata.measure.compare import Speed
    from kogata.report.data import Latency


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .kogata file.")],
    task: Annotated[str, typer.Option("--task", metavar="TASK", help=TASK_HELP, autocompletion=complete_task)],
    data: DataOption = None,
    seed: SeedOption = 0,
    engine: EngineOption = EngineName.ONNXRUNTIME,
    form: FormsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a compressed file again and the task's dense model beside it: bytes, score, and latency in one engine."""
    from kogata.calibration.batches import first_batch
    from kogata.measure import compare
    from kogata.network import surgery
    from kogata.network.rows import first_rows
    from kogata.storage.dense import dense_bytes
    from kogata.storage.load import load
    from kogata.storage.read import read_file
    from kogata.tasks.taskfile import open_task

    forms = forms_of(form)
    stored = read_file(file, forms=forms)  # first, so that a damaged file is reported before a dense model has to be trained
    model, opened = open_task(task, seed, data)
    loaded = load(file, into=surgery.clone(model), forms=forms)
    dense, ours, speed = model, loaded, None
    if (where := engine.engine()) is not None:
        inputs = first_batch(model, opened)[0]
        dense, ours = compare.sessions(stored, loaded, model, inputs, where)
        sample = compare.runnable((dense, ours), first_rows(model, inputs), inputs)
        speed = compare.speed(ours, dense, sample)
    found = {
        "bytes": file.stat().st_size, "score": compare.score(opened, ours), "engine": str(engine),
        "latency_ms": _latency(speed and speed.ours), "speedup": speed and speed.delta,
        "dense": {
            "bytes": dense_bytes(model), "score": compare.score(opened, dense),
            "latency_ms": _latency(speed and speed.dense),
        },
    }  # fmt: skip
    if as_json:
        print_json(found)
    else:
        _print(f"{file} on {opened.name}, engine {engine}", found, speed)


def _latency(latency: Latency | None) -> dict[str, float] | None:
    return None if latency is None else {"p50": latency.p50, "p90": latency.p90, "noisy": latency.noisy}


def _print(title: str, found: dict[str, Any], speed: Speed | None) -> None:
    from kogata.report import words
    from kogata.report.terminal import grid, safe

    out = console()
    out.print(safe(out, title, "bold"))
    table = grid(out, None, "", "dense", "compressed")
    sides = (found["dense"], found)
    decimals = 4 if max(abs(side["score"] or 0) for side in sides) <= 1 else 2
    rows = [
        ("bytes", *(f"{side['bytes']:,}" for side in sides)),
        ("score", *(words.score(side["score"], decimals) for side in sides)),
        *(
            (f"ms, {name}", *(words.number(side["latency_ms"] and side["latency_ms"][key]) for side in sides))
            for name, key in (("median", "p50"), ("90 %", "p90"))
        ),
        ("speed", "", words.speed_change(speed and speed.delta, words.fastest(speed and speed.dense, speed and speed.ours))),
    ]  # fmt: skip
    for row in rows:
        table.add_row(*(safe(out, cell) for cell in row))
    out.print(table)
    if speed is not None and (noise := words.noise({"dense": speed.dense, "compressed": speed.ours})):
        out.print(safe(out, noise))
