"""Progress bars on standard error for work that takes over a second; silent unless it is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def bar(what: str, total: int | None) -> Generator[Bar, None, None]:
    """Show a bar labelled ``what`` that the body advances to ``total`` units; ``total`` is None when unknown."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        yield Bar(progress, what, total)


class Bar:
    """A progress bar, which occupies one line of the terminal."""

    def __init__(self, progress: Progress, what: str, total: int | None) -> None:
        self._progress, self._task = progress, progress.add_task(what, total=total, note="")

    def advance(self, note: str = "") -> None:
        """Advance by one unit; ``note`` replaces the text after the bar, such as the loss."""
        if note:
            self._progress.update(self._task, advance=1, note=note)
        else:
            self._progress.update(self._task, advance=1)
