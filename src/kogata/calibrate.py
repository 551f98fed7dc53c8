"""Calibration: one streamed pass that gathers what methods need to know of a layer's inputs, and the loss of a change."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from kogata import memory, surgery
from kogata.batch import call, move, output_error, split
from kogata.errors import DataError
from kogata.forms import Form
from kogata.gradients import gradient_statistics
from kogata.job import Job, Site, Task
from kogata.lockstep import in_turn
from kogata.stats import GRADIENTS, INPUTS, Gathered, Gradients, Stat
from kogata.views import View, view_of

Gathering = Generator[tuple[Site, Gathered], None, None]


@contextmanager
def evaluating(model: nn.Module) -> Generator[nn.Module, None, None]:
    """The model in evaluation mode and without gradients; modes are as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, mode in modes.items():
            module.training = mode


def first_batch(model: nn.Module, task: Task) -> tuple[Any, Any]:
    """``(inputs, targets)`` of the first calibration batch. Raises DataError when there is none."""
    found = next(_calls(model, task, 1) if callable(task.calibration) else batches(model, task), None)
    if found is None:
        what = "calibration function never calls the model" if callable(task.calibration) else "calibration data is empty"
        raise DataError(f"task {task.name!r}: its {what}; give at least one batch.")
    return found


def batches(model: nn.Module, task: Task) -> Iterator[tuple[Any, Any]]:
    """``(inputs, targets)`` of every calibration batch, on the model's device.

    A ``calibration`` that feeds the model itself is run once, to see what it feeds; it has no targets.
    """
    if callable(task.calibration):
        return _calls(model, task, None)
    return (move(split(batch), _device(model)) for batch in task.calibration)


def _calls(model: nn.Module, task: Task, most: int | None) -> Iterator[tuple[Any, None]]:
    """What the user's own loop passes to the model, in at most so many calls."""
    caught: list[Any] = []

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments) if kwargs else args)
        if len(caught) == most:
            raise _Stop

    handle = model.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with evaluating(model):
            cast("Any", task.calibration)(model)
    except _Stop:
        pass
    finally:
        handle.remove()
    return iter([(inputs, None) for inputs in caught])


class _Stop(Exception):  # noqa: N818 - not an error: it ends the user's loop early
    """Raised inside the user's calibration function."""


def gather(job: Job, sites: Sequence[Site], needs: frozenset[Stat], model: nn.Module) -> Gathering:
    """Each site with what there is to know of its layer, in the order in which ``model`` runs, while the caller changes it.

    Inputs are those that come out of what the caller has made of the layers before: one pass, which holds the statistics of
    one layer. Gradients are those of ``job.model``, gathered before it. Linear layers, one- and two-dimensional convolutions
    and attention projections have inputs to look at; for other sites, and for layers that never run, they are None.
    """
    gradients: dict[str, Gradients] = {}
    if needs & GRADIENTS:
        gradients = gradient_statistics(job, batches(job.model, job.task), sites, needs)
    left = {site.name: site for site in sites}
    if needs & INPUTS:
        with closing(_arrivals(job, sites, needs, model)) as arrivals:
            for site, sums in arrivals:
                yield left.pop(site.name), sums.gathered(site, gradients.get(site.name, Gradients()))
    for name, site in left.items():
        yield site, Gathered(gradients=gradients.get(name, Gradients()))


def _arrivals(
    job: Job, sites: Sequence[Site], needs: frozenset[Stat], model: nn.Module
) -> Generator[tuple[Site, _Sums], None, None]:
    """Each site whose inputs can be seen, when all batches have arrived at it; its sums are dropped when the next one comes."""
    watched = {site.name: (site, *view) for site in sites if (view := view_of(model, site)) is not None}
    with evaluating(model):
        forwards = [partial(call, model, inputs) for inputs, _ in batches(model, job.task)]
        sums = {name: _Sums(view, needs) for name, (_, _, view) in watched.items()}
        layers = [(name, module, sums[name]) for name, (_, module, _) in watched.items()]
        with closing(in_turn(forwards, layers)) as names:
            for name in names:
                memory.release()
                yield watched[name][0], sums[name]
                sums[name].clear()
                memory.release()


class _Sums:
    """Running sums of one layer's statistics."""

    def __init__(self, view: View, needs: frozenset[Stat]) -> None:
        self.view, self.needs, self.rows = view, needs, 0
        self.square: Tensor | None = None
        self.gram: Tensor | None = None

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Add the inputs of one call."""
        for x_GNI in self.view(layer, args, kwargs):
            x_GNI = x_GNI.float()
            self.rows += x_GNI.shape[1]
            if Stat.SQUARE in self.needs:
                square = x_GNI.square().sum(1)
                self.square = square if self.square is None else self.square.add_(square)
            if Stat.GRAM in self.needs:
                if self.gram is None:
                    self.gram = x_GNI.new_zeros(x_GNI.shape[0], x_GNI.shape[2], x_GNI.shape[2])
                self.gram.baddbmm_(x_GNI.mT, x_GNI)

    def clear(self) -> None:
        """Free the memory."""
        self.square = self.gram = None

    def gathered(self, site: Site, gradients: Gradients) -> Gathered:
        for total in (self.square, self.gram):
            if total is not None and not torch.isfinite(total).all():
                raise DataError(f"calibration: the inputs of {site.name} are NaN or infinite; check the data.")
        return Gathered(
            square_GI=None if self.square is None else (self.square / self.rows).cpu(),
            gram_GII=None if self.gram is None else self.gram.div_(self.rows).cpu(), gradients=gradients,
        )  # fmt: skip


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


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
