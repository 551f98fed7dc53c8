"""The folder of a run: recipe, log, checkpoints, results. A run that is killed can resume from its last checkpoint."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState

from kogata.coding.bitmap import Bitmap
from kogata.coding.packed import Packed
from kogata.errors import DataError, FileFormatError, UsageError
from kogata.job import Job, Step
from kogata.network import surgery
from kogata.storage.load import load
from kogata.storage.progress import Progress, advice, damaged, differences, identity_of, plain
from kogata.storage.write import foreign_forms, pack, write_file
from kogata.system.atomic import remove_leftovers, writing
from kogata.system.lock import locked

log = logging.getLogger("kogata.run")


_FAST = (Packed(), Bitmap())  # checkpoints are short-lived, so they use fast coders rather than small ones


class Folder:
    """The folder of a run, with the paths of the files in it. A ``temporary`` one is deleted when its run fails."""

    def __init__(self, path: Path, *, temporary: bool = False) -> None:
        self.path, self.temporary = path, temporary
        self.model, self.engine = path / "model.kogata", path / "model.onnx"
        self.report, self.page = path / "report.json", path / "report.html"
        self.recipe, self.log = path / "recipe.yaml", path / "log.jsonl"
        self.checkpoints = path / "checkpoints"
        self._state = self.checkpoints / "state.json"

    @property
    def finished(self) -> bool:
        """Whether a run has finished here. The report is the last file that a run writes."""
        return self.report.exists()

    @contextmanager
    def running(
        self, recipe: Mapping[str, Any], plan: Sequence[Mapping[str, Any]], job: Job, *, resume: bool
    ) -> Generator[None, None, None]:
        """Prepare the folder for a run, keep other processes out while the body runs, and write its log messages here.

        ``recipe`` is the resolved recipe, ``plan`` the settings of each of its steps. Raises UsageError when another process or
        another run is in the folder, FileFormatError when a checkpoint is damaged, and DataError when it cannot be written to.
        """
        try:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                with locked(self.path):
                    self.begin(recipe, plan, job, resume=resume)
                    with self._logging():
                        yield
            except OSError as error:
                place = Path(error.filename or ".")
                if not (place.is_relative_to(self.path) or self.path.is_relative_to(place)):
                    raise  # it is the user's code that failed, elsewhere
                reason = error.strerror or error
                raise DataError(f"{place}: {reason}. Choose another folder with -o, or make this one writable.") from error
        except BaseException:
            if self.temporary:
                shutil.rmtree(self.path, ignore_errors=True)
            raise

    def begin(self, recipe: Mapping[str, Any], plan: Sequence[Mapping[str, Any]], job: Job, *, resume: bool) -> None:
        """Check that the folder is free or holds this run, which may have got other steps after those done."""
        held = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set[str]()
        ours = {path.name for path in (self.recipe, self.log, self.checkpoints, self.model, self.engine, self.page)}
        if self.finished:
            raise UsageError(f"{self.path}: holds a finished run. Choose another folder with -o, or delete it.")
        if held and not (resume and (self._state.exists() or all(name in ours or name.startswith(".") for name in held))):
            way = ", or continue with --resume" if self._state.exists() else ""
            raise UsageError(f"{self.path}: is not empty. Choose another folder with -o, or delete it{way}.")
        identity, steps = identity_of(job), plain(plan)
        if self._state.exists():
            before = Progress.load(self._state)
            self._refuse(before, differences(before, identity, steps), advice(before, identity))
        else:
            before = Progress(identity=identity, plan=[], steps=[], ledger=[])
        for folder in (self.path, self.checkpoints):
            remove_leftovers(folder)
        if steps != before.plan:
            number = len(before.steps) + 1
            if before.plan[:number] != steps[:number]:  # the step in progress is another one
                shutil.rmtree(self.training(number), ignore_errors=True)
            replace(before, plan=steps).save(self._state)
        with writing(self.recipe) as file:
            file.write(yaml.safe_dump(json.loads(json.dumps(recipe, default=str)), sort_keys=False).encode())

    def training(self, number: int) -> Path:
        """The folder for the checkpoints of the training in a step, by its number from 1."""
        return self.checkpoints / f"training-{number}"

    def save(self, job: Job, steps: Sequence[Step]) -> None:
        """Checkpoint the job after its latest step.

        The step counts as done when the state says so; until then the checkpoints before it stay.
        """
        latest = self._model(len(steps))
        write_file(latest, pack(job.model, coders=_FAST))
        forms = tuple(f"{form.__module__}:{form.__qualname__}" for form in foreign_forms(job.model))
        done = replace(Progress.load(self._state), steps=list(steps), ledger=list(job.ledger), forms=forms)
        done.save(self._state)
        for old in self.checkpoints.iterdir():
            if old not in (self._state, latest):
                shutil.rmtree(old) if old.is_dir() else old.unlink()

    def restore(self, job: Job) -> tuple[Job, list[Step]]:
        """The job at the last checkpoint and the steps done so far; the given job if there is no checkpoint."""
        done = Progress.load(self._state)
        if not done.steps:
            return job, []
        path = self._model(len(done.steps))
        try:
            model = load(path, into=surgery.clone(job.model), forms=done.foreign())
        except FileFormatError as error:
            raise damaged(path, str(error).removeprefix(f"{path}: ")) from error
        log.info("resumed after step %d: %s", len(done.steps), done.steps[-1].name)
        return replace(job, model=model, ledger=tuple(done.ledger)), done.steps

    def finish(self) -> None:
        """Delete the checkpoints of a finished run."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def leave_to(self, owner: object) -> None:
        """Delete a temporary folder when ``owner`` is no longer used, or when the program ends."""
        if self.temporary:
            weakref.finalize(owner, shutil.rmtree, self.path, ignore_errors=True)

    def _model(self, number: int) -> Path:
        return self.checkpoints / f"step-{number}.kogata"

    def _refuse(self, before: Progress, changed: Sequence[str], way: str) -> None:
        """Raises UsageError when anything of an interrupted run has changed."""
        if changed:
            raise UsageError(
                f"{self.path}: the interrupted run had another {' and another '.join(changed)}. {way}Repeat its command, "
                "or start anew in another folder."
            )

    @contextmanager
    def _logging(self) -> Generator[None, None, None]:
        """Write Kogata's log messages to ``log.jsonl`` while the body runs."""
        handler = _Log(self.log, encoding="utf-8")
        handler.setFormatter(_JsonLines())
        kogata = logging.getLogger("kogata")
        level = kogata.level
        kogata.addHandler(handler)
        kogata.setLevel(logging.INFO)
        try:
            yield
        finally:
            kogata.removeHandler(handler)
            kogata.setLevel(level)
            with suppress(OSError):
                handler.close()


def open_folder(output: Path | str | None, *, resume: bool) -> Folder:
    """The folder of a run; a temporary one when ``output`` is None.

    Of several processes that train together (``accelerate launch``), only the first writes to ``output``. The others run the
    same steps from the same checkpoint, in temporary folders.
    """
    first = int(os.environ.get("RANK", "0")) == 0
    if output is not None and first:
        folder = Folder(Path(output))
    else:
        folder = Folder(Path(tempfile.mkdtemp(prefix="kogata-")), temporary=True)
    if output is not None and not first and resume and Folder(Path(output)).checkpoints.exists():
        shutil.copytree(Folder(Path(output)).checkpoints, folder.checkpoints)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState().wait_for_everyone()  # all processes must read the checkpoint before the first one writes
    return folder


class _Log(logging.FileHandler):
    """A log whose full disk stops no run: the checkpoints, which are written later, say so."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name in Python's library
        """Lose the message."""


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({"time": round(time.time(), 3), "level": record.levelname, "message": record.getMessage()})
