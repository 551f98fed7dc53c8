"""``kogata unpack``: extract plain dense weights or a runnable ONNX graph from a compressed file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kogata.cli.options import FormsOption, forms_of
from kogata.errors import UsageError

if TYPE_CHECKING:
    from kogata.storage.layout import Artifact


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .kogata file.")],
    outputs: Annotated[
        list[Path],
        typer.Option(
            "--output", "-o", metavar="OUT", dir_okay=False,
            help="OUT.safetensors for plain dense weights, OUT.onnx for the graph with its weights; may be repeated.",
        ),
    ],
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
    form: FormsOption = None,
) -> None:  # fmt: skip
    """Extract plain safetensors or ONNX from a compressed file, without the model's code."""
    for output in outputs:
        if output.suffix not in (".safetensors", ".onnx"):
            raise UsageError(f"{output}: its name must end in .safetensors or .onnx, which selects the format.")
        if output.exists() and not force:
            raise UsageError(f"{output}: exists. Choose another name, or overwrite it with --force.")

    from kogata.engines import onnx_graph
    from kogata.storage.read import read_file
    from kogata.system.atomic import writing

    stored = read_file(file, forms=forms_of(form))
    for output in outputs:
        content = _weights(stored) if output.suffix == ".safetensors" else onnx_graph.fill(stored).SerializeToString()
        with writing(output) as stream:
            stream.write(content)
        typer.echo(f"{output}: {len(content):,} bytes")


def _weights(stored: Artifact) -> bytes:
    """All weights under all of their names, and the buffers, as the model's load_state_dict expects them."""
    from safetensors.torch import save

    state = {name: form.dense().detach().clone() for names, form in stored.forms.items() for name in names}
    return save({name: tensor.contiguous() for name, tensor in (state | dict(stored.buffers)).items()})
