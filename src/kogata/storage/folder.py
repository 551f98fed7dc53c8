"""The folder of a run: recipe, log, checkpoints, results. A run that is killed can resume from its last checkpoint."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from pydantic import TypeAdapter

from kogata.coding.bitmap import Bitmap
from kogata.coding.packed import Packed
from kogata.errors import UsageError
from kogata.job import Job, Row, Step
from kogata.network import surgery
from kogata.network.fingerprint import fingerprint
from kogata.storage.load import load
from kogata.storage.write import pack, write_file
from kogata.system.atomic import writing

log = logging.getLogger("kogata.run")


_FAST = (Packed(), Bitmap())  # checkpoints are short-lived, so they use fast coders rather than small ones


class Folder:
    """The folder of a run, with the paths of the files in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model, self.engine = path / "model.kogata", path / "model.onnx"
        self.report, self.page = path / "report.json", path / "report.html"
        self.checkpoints = path / "checkpoints"
        self._state = self.checkpoints / "state.json"

    @property
    def finished(self) -> bool:
        """Whether a run has finished here. The report is the last file that a run writes."""
        return self.report.exists()

    def begin(self, recipe: Mapping[str, Any], job: Job, *, resume: bool) -> None:
        """Prepare the folder for a run. Raises UsageError if it holds another run, which would be overwritten or mixed up."""
        identity = {
            "recipe": dict(recipe),
            "seed": job.seed,
            "model": fingerprint(job.model),
            "teacher": fingerprint(job.reference),
        }
        if not resume or (self.finished and not self._state.exists()):
            if self.path.exists() and any(self.path.iterdir()):
                what, way = ("holds a finished run", "") if self.finished else ("is not empty", ", or continue with --resume")
                raise UsageError(f"{self.path}: {what}. Choose another folder with -o, or delete it{way}.")
        elif self._state.exists():
            before = json.loads(self._state.read_text(encoding="utf-8"))["identity"]
            changed = [key for key in identity if before.get(key) != json.loads(json.dumps(identity[key], default=str))]
            if changed:
                raise UsageError(
                    f"{self.path}: the interrupted run had another {' and '.join(changed)}. Repeat its command, or start anew "
                    "in another folder."
                )
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        with writing(self.path / "recipe.yaml") as file:
            file.write(yaml.safe_dump(json.loads(json.dumps(recipe, default=str)), sort_keys=False).encode())
        if not self._state.exists():
            self._write_state(identity, [], [])

    def save(self, job: Job, steps: Sequence[Step]) -> None:
        """Checkpoint the job after its latest step. The state file is written last; until then the previous one is valid."""
        write_file(self.checkpoints / f"step-{len(steps)}.kogata", pack(job.model, coders=_FAST))
        for training in self.checkpoints.glob("*.pt"):
            training.unlink()  # before the step counts as done, so that the next step does not resume from it
        identity = json.loads(self._state.read_text(encoding="utf-8"))["identity"]
        self._write_state(identity, steps, job.ledger)
        for old in self.checkpoints.glob("*"):
            if old.name not in (self._state.name, f"step-{len(steps)}.kogata"):
                old.unlink()

    def restore(self, job: Job) -> tuple[Job, list[Step]]:
        """The job at the last checkpoint and the steps done so far; the given job if there is no checkpoint."""
        state = json.loads(self._state.read_text(encoding="utf-8"))
        steps = TypeAdapter(list[Step]).validate_python(state["steps"])
        if not steps:
            return job, steps
        log.info("resumed after step %d: %s", len(steps), steps[-1].name)
        model = load(self.checkpoints / f"step-{len(steps)}.kogata", into=surgery.clone(job.model))
        return replace(job, model=model, ledger=tuple(Row(**row) for row in state["ledger"])), steps

    def finish(self) -> None:
        """Delete the checkpoints of a finished run."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    @contextmanager
    def logging(self) -> Generator[None, None, None]:
        """Write Kogata's log messages to ``log.jsonl`` while the body runs."""
        self.path.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(self.path / "log.jsonl", encoding="utf-8")
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
            handler.close()

    def _write_state(self, identity: Mapping[str, Any], steps: Sequence[Step], ledger: Sequence[Row]) -> None:
        state = {"identity": identity, "steps": [asdict(s) for s in steps], "ledger": [asdict(r) for r in ledger]}
        with writing(self._state) as file:
            file.write(json.dumps(state, default=str).encode())


def open_folder(output: Path | str | None, *, resume: bool) -> Folder:
    """The folder of a run; a temporary one when ``output`` is None.

    Of several processes that train together (``accelerate launch``), only the first writes to ``output``. The others run the
    same steps from the same checkpoint, in temporary folders.
    """
    first = int(os.environ.get("RANK", "0")) == 0
    folder = Folder(Path(output) if output is not None and first else Path(tempfile.mkdtemp(prefix="kogata-")))
    if output is not None and not first and resume and Folder(Path(output)).checkpoints.exists():
        shutil.copytree(Folder(Path(output)).checkpoints, folder.checkpoints)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState().wait_for_everyone()  # all processes must read the checkpoint before the first one writes
    return folder


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({"time": round(time.time(), 3), "level": record.levelname, "message": record.getMessage()})
