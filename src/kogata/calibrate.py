"""Calibration: one streamed pass that gathers what methods need to know of a layer's inputs, and the loss of a change."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata import surgery
from kogata.batch import call, move, output_error, split
from kogata.errors import DataError
from kogata.forms import Form
from kogata.job import Job, Kind, Site, Task


class Stat(StrEnum):
    """A statistic of the inputs X ``[rows, columns]`` that a weight seen as ``[outputs, columns]`` multiplies."""

    SQUARE = "square"  # mean of x² of each column
    GRAM = "gram"  # XᵀX / rows


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What one pass gathered for a site. A statistic that was not asked for, or that the layer has not, is None."""

    square_I: Tensor | None = None
    gram_II: Tensor | None = None


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
    if callable(task.calibration):
        return _first_call(model, task), None
    for batch in task.calibration:
        return move(split(batch), _device(model))
    raise DataError(f"task {task.name!r}: its calibration data is empty; give at least one batch.")


def run(model: nn.Module, task: Task) -> None:
    """Feed all calibration batches through the model; ``calibration`` may also be a function that does so itself."""
    with evaluating(model):
        if callable(task.calibration):
            task.calibration(model)
            return
        for batch in task.calibration:
            call(model, move(split(batch)[0], _device(model)))


def gather(job: Job, sites: Iterable[Site], needs: frozenset[Stat]) -> Iterator[tuple[Site, Stats]]:
    """Each site with the statistics it needs, all from one pass over the calibration data.

    Linear layers and ungrouped one- and two-dimensional convolutions have inputs to look at; for other sites the statistics
    are None.
    """
    sums = {site.name: _Sums(needs) for site in sites if needs}
    handles: list[Any] = []
    for site in sites if needs else ():
        module = job.model.get_submodule(site.module)
        convolution = isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups == 1
        if site.kind in (Kind.LINEAR, Kind.CONV) and (isinstance(module, nn.Linear) or convolution):
            hook = sums[site.name]
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        if handles:
            run(job.model, job.task)
    finally:
        for handle in handles:
            handle.remove()
    for site in sites:
        yield site, sums.pop(site.name).stats(site) if needs else Stats()


class _Sums:
    """Running sums of one layer's statistics."""

    def __init__(self, needs: frozenset[Stat]) -> None:
        self.needs, self.rows = needs, 0
        self.square: Tensor | None = None
        self.gram: Tensor | None = None

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        """A forward hook: add the inputs of one call."""
        inputs = args[0] if args else kwargs["input"]
        x_NI = as_matrix(layer, inputs.detach()).float()
        self.rows += len(x_NI)
        if Stat.SQUARE in self.needs:
            square = x_NI.square().sum(0)
            self.square = square if self.square is None else self.square + square
        if Stat.GRAM in self.needs:
            gram = x_NI.T @ x_NI
            self.gram = gram if self.gram is None else self.gram + gram

    def stats(self, site: Site) -> Stats:
        for total in (self.square, self.gram):
            if total is not None and not torch.isfinite(total).all():
                raise DataError(f"calibration: the inputs of {site.name} are NaN or infinite; check the data.")
        return Stats(
            square_I=None if self.square is None else (self.square / self.rows).cpu(),
            gram_II=None if self.gram is None else (self.gram / self.rows).cpu(),
        )


def as_matrix(layer: nn.Module, inputs: Tensor) -> Tensor:
    """The inputs as the matrix ``[rows, columns]`` that the layer's weight, flattened to ``[outputs, columns]``, multiplies."""
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return inputs.flatten(0, -2)
    pads: list[int] = layer._reversed_padding_repeated_twice  # pyright: ignore[reportPrivateUsage] - "same" is resolved there
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    inputs = functional.pad(inputs, pads, mode=mode)
    if isinstance(layer, nn.Conv1d):
        inputs = inputs.unsqueeze(2)
    kernel, stride, dilation = ((1,) * (2 - len(v)) + tuple(v) for v in (layer.kernel_size, layer.stride, layer.dilation))
    columns_NIL = functional.unfold(inputs, cast("Any", kernel), cast("Any", dilation), stride=cast("Any", stride))
    return columns_NIL.transpose(1, 2).flatten(0, 1)


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


class _Stop(Exception):  # noqa: N818 - not an error: it ends the user's loop after the first call
    pass


def _first_call(model: nn.Module, task: Task) -> Any:
    """What the user's forward loop passes to the model in its first call."""
    caught: list[Any] = []

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(kwargs if kwargs else args)
        raise _Stop

    handle = model.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        cast("Any", task.calibration)(model)
    except _Stop:
        pass
    finally:
        handle.remove()
    if not caught:
        raise DataError(f"task {task.name!r}: its calibration function never calls the model.")
    return caught[0]
