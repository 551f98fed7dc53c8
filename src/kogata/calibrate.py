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
from kogata.lockstep import Visit, in_turn
from kogata.normalization import Moments, follows
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
    one layer. Batch normalization behind what was changed gets the statistics of the calibration data that now reach it. For
    ``Stat.CROSS`` each batch also runs through ``job.model``, beside its run through ``model``. Gradients are those of
    ``job.model``, gathered before it. Linear layers, one- and two-dimensional convolutions and attention projections have
    inputs to look at; for other sites, and for layers that never run, they are None.
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
    sums = {name: _Sums(view, needs) for name, (_, _, view) in watched.items()}
    norms = {name: (module, Moments()) for name, module in model.named_modules() if follows(module)}
    layers: list[tuple[str, nn.Module, Visit]] = [(name, module, sums[name]) for name, (_, module, _) in watched.items()]
    layers += [(name, module, moments) for name, (module, moments) in norms.items()]
    changed, models = False, [model]
    if Stat.CROSS in needs:  # the unchanged run of a batch arrives just before the changed one
        models = [job.model, model]
        unchanged = [(name, view_of(job.model, site)) for name, (site, _, _) in watched.items()]
        layers += [(name, view[0], sums[name].unchanged) for name, view in unchanged if view is not None]
    with memory.returned(), evaluating(job.model), evaluating(model):
        forwards = [partial(call, each, inputs) for inputs, _ in batches(model, job.task) for each in models]
        with closing(in_turn(forwards, layers)) as names:
            for name in names:
                if name in norms:
                    if changed:
                        norms[name][1].renew(norms[name][0])
                    continue
                site = watched[name][0]
                before = _holder(model, site)
                yield site, sums[name]
                changed |= _holder(model, site) is not before
                sums[name].clear()
                memory.release()


def _holder(model: nn.Module, site: Site) -> object:
    """What holds a weight: a form, or the parameter itself."""
    module = model.get_submodule(site.module)
    return surgery.form_of(module, site.parameter) or getattr(module, site.parameter)


class _Sums:
    """Running sums of one layer's statistics."""

    def __init__(self, view: View, needs: frozenset[Stat]) -> None:
        self.view, self.needs, self.rows = view, needs, 0
        self.square: Tensor | None = None
        self.gram: Tensor | None = None
        self.cross: Tensor | None = None
        self.unpaired = list[Tensor]()  # pieces of the unchanged run of one batch, whose changed run comes next

    def unchanged(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the inputs of one call in the unchanged model, until the same call in the changed one."""
        self.unpaired += [x_GNI.clone() for x_GNI in self.view(layer, args, kwargs)]  # what follows may change them in place

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Add the inputs of one call."""
        for x_GNI in self.view(layer, args, kwargs):
            x_GNI = x_GNI.float()
            self.rows += x_GNI.shape[1]
            if Stat.SQUARE in self.needs:
                square = x_GNI.square().sum(1)
                self.square = square if self.square is None else self.square.add_(square)
            if Stat.GRAM in self.needs:
                self.gram = _added(self.gram, x_GNI, x_GNI)
            if Stat.CROSS in self.needs:
                self.cross = _added(self.cross, self._partner(x_GNI), x_GNI)

    def _partner(self, x_GNI: Tensor) -> Tensor:
        """What the unchanged model had in the place of ``x_GNI``."""
        if not self.unpaired or self.unpaired[0].shape != x_GNI.shape:
            raise DataError(
                "calibration: a batch takes another way through the changed model than through the model before, so their "
                "inputs cannot be compared; choose a method, or settings, that do without."
            )
        return self.unpaired.pop(0).float()

    def clear(self) -> None:
        """Free the memory."""
        self.square = self.gram = self.cross = None

    def gathered(self, site: Site, gradients: Gradients) -> Gathered:
        for total in (self.square, self.gram, self.cross):
            if total is not None and not torch.isfinite(torch.stack(total.aminmax())).all():  # without a mask of its size
                raise DataError(f"calibration: the inputs of {site.name} are NaN or infinite; check the data.")
        square, gram, cross = (
            None if total is None else total.div_(self.rows).cpu() for total in (self.square, self.gram, self.cross)
        )
        return Gathered(square_GI=square, gram_GII=gram, cross_GII=cross, gradients=gradients)


def _added(total: Tensor | None, left_GNI: Tensor, right_GNI: Tensor) -> Tensor:
    """A sum of the products of rows, with those of one more piece."""
    if total is None:
        groups, _, columns = right_GNI.shape
        total = right_GNI.new_zeros(groups, columns, columns)
    return total.baddbmm_(left_GNI.mT, right_GNI)


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


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
