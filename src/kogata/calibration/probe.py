"""The loss on the first calibration batch, and what changing one weight does to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from kogata.calibration.batches import first_batch
from kogata.errors import DataError
from kogata.forms import Form
from kogata.job import Job, Site
from kogata.network import surgery
from kogata.network.batch import call, evaluating, output_error
from kogata.system import memory

MOST = 64  # changes of one step whose losses are measured: each takes a forward

Change = TypeVar("Change")


def most_changed(sizes: Mapping[Change, float]) -> list[Change]:
    """The largest changes of a step, whose losses are worth measuring; of equal ones the first.

    >>> most_changed({"first": 0.5, "second": 2.0})
    ['second', 'first']
    """
    return sorted(sizes, key=lambda change: -sizes[change])[:MOST]


class Probe:
    """Measures what changing one site alone does to the loss, on the first calibration batch.

    The loss is the task's, where it has one and the batch has targets; otherwise the relative squared error of the outputs
    against the original model's.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.inputs, self.targets = first_batch(job.reference, job.task)
        with evaluating(job.reference) as reference:
            self.wanted = call(reference, self.inputs)
        self.base = self.loss(job.model)
        memory.release()

    def loss(self, model: nn.Module) -> float:
        """The loss of a model. Raises DataError when it is not finite."""
        task = self.job.task
        with evaluating(model):
            output = call(model, self.inputs)
            if task.loss is not None and self.targets is not None:
                loss = float(task.loss(output, self.targets))
            else:
                loss = float(output_error(output, self.wanted))
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise DataError(f"task {task.name!r}: the loss of the first calibration batch is {loss}; check data and weights.")
        return loss

    def change(self, site: Site, form: Form) -> float:
        """The loss with ``form`` at ``site`` and all else as in the job, minus the job's loss."""
        trial = surgery.clone(self.job.model)
        surgery.attach(trial, site, form)
        return self.loss(trial) - self.base
