"""Adoption: a user's model and task become a job, after everything that could go wrong later has been looked at now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from kogata.calibration.probe import Probe
from kogata.calibration.watch import Watch
from kogata.errors import DataError, KogataError
from kogata.job import Job, Role, Seen, Task
from kogata.network.batch import evaluating
from kogata.network.sites import sites_of


def prepare(model: nn.Module, task: Task, *, seed: int = 0) -> Job:
    """The first job of a run; the model itself is never changed.

    Raises DataError when the model has no weights, or weights that are NaN, infinite or complex, or when the calibration data
    is empty or gives a loss that is not finite.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_complex():
            raise DataError(f"model: {name} of shape {tuple(tensor.shape)} is complex; only real weights can be compressed.")
        # The extremes are NaN if any value is, and need no tensor of the size of the weight.
        if tensor.is_floating_point() and tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise DataError(
                f"model: {name} of shape {tuple(tensor.shape)} holds {count} NaN or infinite values; every weight must be "
                "finite. Load another checkpoint or train again."
            )
    for field in ("calibration", "train"):
        if isinstance(getattr(task, field), Iterator):
            raise DataError(
                f"task {task.name!r}: {field} is an iterator, empty after one pass; give a list, a DataLoader, or another "
                "object that can be iterated again."
            )
    if not sites_of(model):
        raise DataError(f"model: {type(model).__name__} has no weight that can be compressed.")
    job = Job(model=model, reference=model, task=task, seed=seed)
    try:
        inputs = Probe(job).inputs
        return replace(job, seen=_seen(model, inputs))
    except KogataError:
        raise
    except Exception as error:  # whatever the user's model or loss raises
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"task {task.name!r}: the model fails on the first calibration batch: {reason}") from error


def _seen(model: nn.Module, inputs: Any) -> dict[str, Seen]:
    """What one forward shows of how the model multiplies its weights."""
    watch = Watch(model, [site for site in sites_of(model) if site.role is Role.MATRIX], lambda name, placement: None)
    with evaluating(model), watch.listening(lambda name, look: None):
        watch.run(inputs)
    return watch.seen()
