"""Bayesian dark knowledge: samples of the posterior over a net's weights, which together teach one student.

Korattikara, Rathod, Murphy, Welling, "Bayesian Dark Knowledge", NeurIPS 2015 (1506.04416), equation 2, by the stochastic
gradient Langevin dynamics of Welling, Teh, ICML 2011:
    θ ← θ + ε/2 (−λ θ + N/|B| Σ_{i ∈ B} ∇ log p(y_i | x_i, θ)) + √ε z,   z ~ N(0, 1),
with a Gaussian prior of precision λ and a task whose loss is the mean of −log p(y | x, θ) over a batch B of N examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any

import torch
from torch import nn

from kogata.errors import DataError
from kogata.job import Task
from kogata.network import surgery
from kogata.network.batch import call, length, move, split
from kogata.settings import Range, check
from kogata.training.teachers.ensemble import Ensemble


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """``samples`` nets, one every ``thin`` steps after ``burn`` steps of size ε = ``step``; ``prior`` is λ."""

    samples: Annotated[int, Range(ge=1)]
    step: Annotated[float, Range(gt=0)]
    burn: Annotated[int, Range(ge=0)] = 1000
    thin: Annotated[int, Range(ge=1)] = 100
    prior: Annotated[float, Range(ge=0)] = 1.0

    def __post_init__(self) -> None:
        check(self, "posterior")


def sample(model: nn.Module, task: Task, settings: Sampling, *, seed: int = 0, regression: bool = False) -> Ensemble:
    """Nets drawn from the posterior, beginning at ``model``, which stays as it is: together the teacher of a student.

    Every trainable parameter is drawn. Batch normalization keeps the statistics it has. Raises DataError when the task has no
    training data or loss, or the loss is not finite.
    """
    if task.train is None or task.loss is None:
        raise DataError(f"posterior: task {task.name!r} needs training data and a loss, the mean of −log p(y | x).")
    net, loss = surgery.clone(model, share=False).eval(), task.loss
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if not parameters:
        raise DataError("posterior: no parameter of the model is trainable; set requires_grad on those to be drawn.")
    device = parameters[0].device
    examples = sum(length(split(batch)[0]) for batch in task.train)
    drawn: list[nn.Module] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for number, batch in enumerate(islice(_endless(task.train), settings.burn + settings.samples * settings.thin), 1):
            inputs, targets = move(split(batch), device)
            cost = examples * loss(call(net, inputs), targets)
            if not torch.isfinite(cost):
                raise DataError(f"posterior: the loss became {cost.item()} in step {number}; lower the step ({settings.step}).")
            gradients = torch.autograd.grad(cost, parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter -= settings.step / 2 * (gradient + settings.prior * parameter)
                    parameter += math.sqrt(settings.step) * torch.randn_like(parameter)
            if number > settings.burn and (number - settings.burn) % settings.thin == 0:
                drawn.append(surgery.clone(net, share=False))
    return Ensemble(drawn, regression=regression).eval()


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, pass after pass. Raises DataError when there are none."""
    while True:
        some = False
        for batch in batches:
            some = True
            yield batch
        if not some:
            raise DataError("posterior: the training data is empty; give at least one batch.")
