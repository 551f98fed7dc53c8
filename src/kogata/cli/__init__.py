"""The command line, with one module for each command.

Importing PyTorch takes seconds. Everything that needs it is imported inside the commands, so that ``kogata --help`` is quick.
"""

from __future__ import annotations

import io
import logging
import sys
import traceback
from typing import Annotated

import typer

from kogata._version import __version__
from kogata.cli import bench, compress, distill, inspect, methods, report, unpack
from kogata.errors import KogataError

app = typer.Typer(
    name="kogata",
    help="Compress a trained PyTorch network to a budget: the bytes are counted, the milliseconds measured.",
    epilog="Exit codes: 2 usage, 3 target missed, 4 data, 5 file, 6 engine, 130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help takes half the time
    pretty_exceptions_enable=False,
)
app.command("methods")(methods.run)
app.command("inspect")(inspect.run)
app.command("compress")(compress.run)
app.command("distill")(distill.run)
app.command("bench")(bench.run)
app.command("report")(report.run)
app.command("unpack")(unpack.run)

_ESCAPES = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if code != ord("\n")}


def _version(asked: bool) -> None:
    if asked:
        print(f"kogata {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the program. A KogataError prints one message and sets the exit code; any other exception is reported as a bug."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # characters that the terminal lacks are shown as "?"
    _narrate()
    try:
        app(prog_name="kogata")
    except KogataError as error:
        print(f"error: {str(error).translate(_ESCAPES)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception:
        traceback.print_exc()
        print("error: this is a bug in Kogata, not in what you typed; please report the lines above.", file=sys.stderr)
        sys.exit(1)


def _narrate() -> None:
    """Log to stderr: Kogata's warnings, the steps of a run, and the epochs of a training where no terminal shows a bar."""

    def shown(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.name == "kogata.run" or not sys.stderr.isatty()

    handler = logging.StreamHandler()
    handler.addFilter(shown)
    handler.setFormatter(logging.Formatter("kogata: %(message)s"))
    logging.getLogger("kogata").addHandler(handler)
