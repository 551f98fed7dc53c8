"""Bayesian dark knowledge: samples of the posterior over a network's weights, which together teach one student.

Korattikara, Rathod, Murphy, Welling, "Bayesian Dark Knowledge", NeurIPS 2015 (1506.04416), equation 2, by the stochastic
gradient Langevin dynamics of Welling, Teh, ICML 2011:
    θ ← θ + ε/2 (−λ θ + N/|B| Σ_{i ∈ B} ∇ log p(y_i | x_i, θ)) + √ε z,   z ~ N(0, 1),
with a Gaussian prior of precision λ, batches B out of N training examples, and as task loss the mean of −log p(y | x, θ).
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
    """Settings of the sampler: ``samples`` networks, one every ``thin`` steps after ``burn`` steps of burn-in.

    ``step`` is the step size ε and ``prior`` the precision λ of the prior. Raises UsageError for values out of range.
    """

    samples: Annotated[int, Range(ge=1)]
    step: Annotated[float, Range(gt=0)]
    burn: Annotated[int, Range(ge=0)] = 1000
    thin: Annotated[int, Range(ge=1)] = 100
    prior: Annotated[float, Range(ge=0)] = 1.0

    def __post_init__(self) -> None:
        check(self, "posterior")


def sample(model: nn.Module, task: Task, settings: Sampling, *, seed: int = 0, regression: bool = False) -> Ensemble:
    """Draw networks from the posterior, starting from ``model``, and return them as one teacher; ``model`` is not changed.

    Every trainable parameter is sampled. Batch normalization keeps its running statistics. With ``regression`` the teacher
    averages outputs, else class probabilities. Raises DataError when the task has no training data or loss, or the loss is not
    finite.

    >>> batch = torch.randn(8, 4), torch.randint(2, (8,))
    >>> task = Task(calibration=[batch], train=[batch], loss=nn.functional.cross_entropy)
    >>> teacher = sample(nn.Linear(4, 2), task, Sampling(samples=3, step=0.01, burn=5, thin=2))
    >>> len(teacher.models), tuple(teacher(batch[0]).shape)
    (3, (8, 2))
    """
    if task.train is None or task.loss is None:
        raise DataError(f"posterior: task {task.name!r} needs training data and a loss, the mean of −log p(y | x).")
    net, loss = surgery.clone(model, share=False).eval(), task.loss
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if not parameters:
        raise DataError("posterior: no parameter of the model is trainable; set requires_grad on those to be sampled.")
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
    """The batches, repeated without end. Raises DataError when there are none."""
    while True:
        some = False
        for batch in batches:
            some = True
            yield batch
        if not some:
            raise DataError("posterior: the training data is empty; give at least one batch.")
