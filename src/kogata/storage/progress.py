"""How far a run has come: its identity, its plan, and the steps done, in the file ``state.json`` of its checkpoints."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from kogata.calibration.identity import data_digests
from kogata.errors import FileFormatError
from kogata.forms import Form
from kogata.job import Job, Row, Step
from kogata.network.fingerprint import fingerprint
from kogata.system.atomic import writing


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What is known of an interrupted run.

    ``identity`` is all that decides the bytes besides the recipe. ``plan`` has the settings of each step of the recipe; the
    first ``len(steps)`` of them are done, and ``ledger`` has their rows. ``forms`` names the forms of other packages that the
    last checkpoint holds, each as ``module:Class``.
    """

    identity: dict[str, str]
    plan: list[dict[str, Any]]
    steps: list[Step]
    ledger: list[Row]
    forms: tuple[str, ...] = ()

    def foreign(self) -> list[type[Form]]:
        """The classes of ``forms``, as far as the recipe has imported them; nothing that a file names is imported here."""
        found = list[type[Form]]()
        for name in self.forms:
            module, _, path = name.partition(":")
            kind: object = sys.modules.get(module)
            for part in path.split("."):
                kind = getattr(kind, part, None)
            if isinstance(kind, type) and issubclass(kind, Form):
                found.append(kind)
        return found

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        with writing(path) as file:
            file.write(json.dumps(asdict(self), default=str).encode())

    @classmethod
    def load(cls, path: Path) -> Progress:
        """Read it; raises FileFormatError when the file is damaged."""
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise damaged(path, reason) from None


def damaged(path: Path, reason: str) -> FileFormatError:
    """The error for a checkpoint that cannot be read, with what to do about it."""
    return FileFormatError(
        f"{path}: this checkpoint is damaged ({reason.rstrip('.')}). Restore it, or delete {path.parent} and repeat the "
        "command with --resume to begin anew."
    )


def identity_of(job: Job) -> dict[str, str]:
    """All that decides the bytes of a run besides its recipe, by its name in messages."""
    return {
        "seed": str(job.seed), "thread count": str(torch.get_num_threads()), "model": fingerprint(job.model),
        "teacher": fingerprint(job.reference), **data_digests(job),
    }  # fmt: skip


def plain(plan: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Settings as they come back from a JSON file."""
    return json.loads(json.dumps(plan, default=str))


def differences(before: Progress, identity: Mapping[str, str], plan: Sequence[Mapping[str, Any]]) -> list[str]:
    """What keeps a run from going on: each difference that would mix two runs. The steps that are still to do may differ."""
    found = list[str]()
    for key, now in identity.items():
        was = before.identity.get(key, "unknown")
        if was == now:
            continue
        short = key in ("seed", "thread count")
        found.append(f"{key} ({was}, now {now})" if short else key)
    done = len(before.steps)
    if list(plan[:done]) != before.plan[:done]:
        names = " → ".join(step.name for step in before.steps)
        found.append(f"recipe (the steps {names} are done, and this recipe does not begin with them)")
    return found


def advice(before: Progress, identity: Mapping[str, str]) -> str:
    """How to repeat an interrupted run whose thread count is not the present one; empty where it is."""
    threads = before.identity.get("thread count")
    if threads is None or threads == identity["thread count"]:
        return ""
    return f"The order of floating-point sums, and so the bytes, depends on the threads: set OMP_NUM_THREADS={threads}. "
