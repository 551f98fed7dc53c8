"""A task that trains in a second, for methods that train."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.job import Job
from kogata.methods import Recover
from kogata.methods.base.method import Method
from kogata.network.batch import evaluating

QUICK = Recover(epochs=8, learning_rate=1e-2, distill=0.0)


def network() -> nn.Sequential:
    """Normalization, then an activation module, before each layer but the first."""
    return nn.Sequential(
        nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3)
    )


def examples() -> tuple[Tensor, Tensor]:
    """Inputs and the one of three classes that a fixed random layer sees in them."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(256, 12, generator=generator)
    return inputs, (inputs @ torch.randn(12, 3, generator=generator)).argmax(1)


def job_of(model: nn.Module) -> Job:
    """A job on the examples."""
    inputs, targets = examples()
    batches = [(inputs[i : i + 32], targets[i : i + 32]) for i in range(0, 256, 32)]
    return prepare(model, Task(calibration=batches[:2], train=batches, loss=functional.cross_entropy))


@cache
def trained() -> Job:
    """A dense net that knows the examples; no method changes a job."""
    torch.manual_seed(1)
    return Recover(epochs=10, learning_rate=1e-2, distill=0.0).apply(job_of(network()))


def accuracy(model: nn.Module) -> float:
    """Of the examples."""
    inputs, targets = examples()
    with evaluating(model):
        return float((model(inputs).argmax(1) == targets).float().mean())


def refused_settings(make: type[Method], **settings: object) -> Method:
    """An instance from settings that are wrong on purpose."""
    return make(**settings)
