"""``kogata inspect``: the layers of a task's model, or of a compressed file."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kogata.cli.options import (
    TASK_HELP,
    DataOption,
    FormsOption,
    JsonOption,
    SeedOption,
    complete_task,
    console,
    forms_of,
    print_json,
)
from kogata.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from kogata.forms import Form
    from kogata.measure.sizes import FileLayer, ModelLayer
    from kogata.search.structures import LayerScores, Score

FRACTION = 0.25


def run(
    what: Annotated[
        str, typer.Argument(metavar="TASK|FILE", help=f"A .kogata file. {TASK_HELP}", autocompletion=complete_task)
    ],
    data: DataOption = None,
    seed: SeedOption = 0,
    structure: Annotated[
        bool, typer.Option("--structure", help="Measure the error of each structure on each layer, on calibration data.")
    ] = False,
    fraction: Annotated[
        float | None,
        typer.Option(
            "--fraction", metavar="PART", help=f"With --structure: part of a layer's bytes, from 0 to 1.  [default: {FRACTION}]"
        ),
    ] = None,
    form: FormsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the bytes of a model or of a compressed file, layer by layer.

    Bits are per weight of the dense model. For a model, "entropy" is the size that lossless coding of its floats, byte by byte,
    could reach. For a file, it is the entropy of the stored arrays under a static model; adaptive coders can go below it.
    """
    if fraction is not None and not structure:
        raise UsageError("inspect: --fraction sets the size of structures; add --structure.")
    if structure:
        _structure(what, data, seed, FRACTION if fraction is None else fraction, as_json)
    elif what.endswith(".kogata"):
        _file(Path(what), forms_of(form), as_json)
    else:
        _model(what, data, seed, as_json)


def _model(reference: str, data: Path | None, seed: int, as_json: bool) -> None:
    from kogata.calibration.batches import first_batch
    from kogata.measure import sizes
    from kogata.storage.dense import dense_bytes
    from kogata.tasks.taskfile import open_task

    model, task = open_task(reference, seed, data)
    layers = sizes.of_model(model, first_batch(model, task)[0])
    size = dense_bytes(model)
    rest = {"everything else": size - sum(layer.bytes for layer in layers)}
    if as_json:
        print_json({"task": task.name, "bytes": size, "layers": [asdict(each) for each in layers], "rest_bytes": rest})
    else:
        _print_model(task.name, size, layers, rest)


def _structure(reference: str, data: Path | None, seed: int, fraction: float, as_json: bool) -> None:
    if reference.endswith(".kogata"):
        raise UsageError(f"inspect: --structure needs calibration data, which {reference} lacks; give the task instead.")
    from kogata.search.structures import scores
    from kogata.tasks.taskfile import open_task

    model, task = open_task(reference, seed, data)
    layers = scores(model, task, fraction, seed=seed)
    if as_json:
        found = [asdict(layer) | {"best": layer.best.structure if layer.best else None} for layer in layers]
        print_json({"task": task.name, "fraction": fraction, "layers": found})
    else:
        _print_structure(task.name, fraction, layers)


def _file(path: Path, forms: tuple[type[Form], ...], as_json: bool) -> None:
    from kogata.measure import sizes
    from kogata.storage.read import read_file

    stored = read_file(path, forms=forms)
    layers, packed = sizes.of_file(stored), stored.packed
    matrices = {layer.site for layer in layers}
    rest = {
        "header": packed.header_bytes, "manifest": packed.manifest_bytes, "graph": packed.graph_bytes,
        "biases and buffers": sum(plane.bytes for plane in packed.planes if plane.site not in matrices),
    }  # fmt: skip
    size = len(packed.data)
    if as_json:
        print_json({"file": str(path), "bytes": size, "layers": [asdict(each) for each in layers], "rest_bytes": rest})
    else:
        _print_file(str(path), size, layers, rest)


def _print_model(name: str, size: int, layers: tuple[ModelLayer, ...], rest: dict[str, int]) -> None:
    from kogata.report import words
    from kogata.report.terminal import grid, safe

    out = console()
    out.print(safe(out, f"{name}: {size:,} bytes as plain safetensors", "bold"))
    table = grid(out, None, "layer", "shape", "values", "MACs", "bytes", "bits/w", "entropy", "share")
    for layer in layers:
        macs = words.NOTHING if layer.macs is None else f"{layer.macs:,}"
        cells = (
            layer.site, _shape(layer.shape), f"{layer.parameters:,}", macs, words.size(layer.bytes),
            words.number(layer.bits_per_weight), words.number(layer.entropy_bits_per_weight),
            words.share(layer.bytes, size),
        )  # fmt: skip
        table.add_row(*(safe(out, cell) for cell in cells))
    for part, count in rest.items():
        cells = (part, "", "", "", words.size(count), "", "", words.share(count, size))
        table.add_row(*(safe(out, cell) for cell in cells))
    table.add_section()
    values, macs = sum(layer.parameters for layer in layers), sum(layer.macs or 0 for layer in layers)
    table.add_row("all", "", f"{values:,}", f"{macs:,}", words.size(size), "", "", "100 %", style="bold")
    out.print(table)


def _print_file(name: str, size: int, layers: tuple[FileLayer, ...], rest: dict[str, int]) -> None:
    from kogata.report import words
    from kogata.report.terminal import grid, safe

    out = console()
    out.print(safe(out, f"{name}: {size:,} bytes", "bold"))
    table = grid(out, None, "layer, plane", "shape, coder", "stored", "bytes", "bits/w", "entropy", "share")
    for layer in layers:
        cells = (
            " = ".join((layer.site, *layer.aliases)), _shape(layer.shape), f"{layer.stored:,}", f"{layer.bytes:,}",
            words.number(layer.bits_per_weight), words.number(layer.entropy_bits_per_weight),
            words.share(layer.bytes, size),
        )  # fmt: skip
        table.add_row(*(safe(out, cell) for cell in cells))
        table.add_row(safe(out, f"  {layer.form}", "italic"))
        for plane in layer.planes:
            bits = (8 * plane.bytes / layer.parameters, plane.entropy_bits / layer.parameters)
            cells = (
                f"  {plane.plane}", plane.coder, f"{plane.elements:,}", f"{plane.bytes:,}", *map(words.number, bits),
                words.share(plane.bytes, size),
            )  # fmt: skip
            table.add_row(*(safe(out, cell, "dim") for cell in cells))
    for part, count in rest.items():
        table.add_row(*(safe(out, cell) for cell in (part, "", "", f"{count:,}", "", "", words.share(count, size))))
    table.add_section()
    table.add_row("all", "", "", f"{size:,}", "", "", "100 %", style="bold")
    out.print(table)


def _print_structure(name: str, fraction: float, layers: tuple[LayerScores, ...]) -> None:
    from kogata.report import words
    from kogata.report.terminal import WIDE, grid, safe

    out = console()
    wide = out.width >= WIDE
    yardsticks = [score.structure for score in layers[0].yardsticks] if wide else []
    out.print(safe(out, f"{name}: every layer under each structure, at {100 * fraction:g} % of its bytes", "bold"))
    out.print(safe(out, "squared error of the layer's outputs in percent, before any training; - refused", "dim"))
    table = grid(out, None, *(("layer", "shape") if wide else ("layer",)), "structures, the best first", *yardsticks)
    table.columns[-1 - len(yardsticks)].justify = "left"
    table.columns[-1 - len(yardsticks)].no_wrap = False
    table.show_lines = True
    for layer in layers:
        shape = safe(out, _shape(layer.shape), "" if wide else "dim")
        names = [safe(out, layer.site), shape] if wide else [safe(out, "\n").join([safe(out, layer.site), shape])]
        beside = [safe(out, _error(score)) for score in layer.yardsticks] if wide else []
        table.add_row(*names, _errors(out, layer, () if wide else layer.yardsticks), *beside)
    out.print(table)
    counts = Counter(layer.best.structure for layer in layers if layer.best)
    best = ", ".join(f"{structure} for {count}" for structure, count in counts.most_common())
    out.print(safe(out, f"Best: {best or words.NOTHING}, of {len(layers)} layers. --json has sizes and reasons.", "bold"))


def _errors(out: Console, layer: LayerScores, beside: tuple[Score, ...]) -> RenderableType:
    """Errors in ascending order with the best in bold, then the refused structures, then the baselines for comparison."""
    from rich.columns import Columns
    from rich.console import Group

    from kogata.report.terminal import safe

    measured = sorted((score for score in layer.structures if score.error is not None), key=lambda score: score.error or 0.0)
    cells = [safe(out, f"{s.structure} {_error(s)}", "bold" if s is layer.best else "") for s in measured]
    refused = ", ".join(score.structure for score in layer.structures if score.error is None)
    lines: list[RenderableType] = [Columns(cells, padding=(0, 3))] if cells else []
    if refused:
        lines.append(safe(out, f"- {refused}", "dim"))
    if beside:
        lines.append(safe(out, "   ".join(f"{score.structure} {_error(score)}" for score in beside), "italic"))
    return Group(*lines)


def _error(score: Score) -> str:
    from kogata.report import words

    return "-" if score.error is None else words.number(100 * score.error)


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
