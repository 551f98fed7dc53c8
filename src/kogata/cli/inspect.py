"""``kogata inspect``: the layers of a task's model, or of a compressed file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kogata.cli.options import TASK_HELP, DataOption, JsonOption, SeedOption, complete_task, console, print_json

if TYPE_CHECKING:
    from kogata.inspect import FileLayer, ModelLayer


def run(
    what: Annotated[
        str, typer.Argument(metavar="TASK|FILE", help=f"A .kogata file. {TASK_HELP}", autocompletion=complete_task)
    ],
    data: DataOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Show where a model's or a file's bytes lie, layer by layer.

    All bits are for one weight of the dense model. Of a model, "entropy" is what coding the bytes of its floats could
    reach without changing one. Of a file, it is the static entropy of what it stores; adaptive coders go below it.
    """
    if what.endswith(".kogata"):
        _file(Path(what), as_json)
    else:
        _model(what, data, seed, as_json)


def _model(reference: str, data: Path | None, seed: int, as_json: bool) -> None:
    from kogata import artifact, inspect
    from kogata.calibrate import first_batch
    from kogata.tasks.taskfile import open_task

    model, task = open_task(reference, seed, data)
    layers = inspect.of_model(model, first_batch(model, task)[0])
    size = artifact.dense_bytes(model)
    rest = {"everything else": size - sum(layer.bytes for layer in layers)}
    if as_json:
        print_json({"task": task.name, "bytes": size, "layers": [asdict(each) for each in layers], "rest_bytes": rest})
    else:
        _print_model(task.name, size, layers, rest)


def _file(path: Path, as_json: bool) -> None:
    from kogata import artifact, inspect

    stored = artifact.read(path)
    layers, packed = inspect.of_file(stored), stored.packed
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


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
