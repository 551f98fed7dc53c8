"""One weight in a forward that a test gives, and what calibration sees of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kogata import Task
from kogata.calibration.gather import gather
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Gathered, Stat
from kogata.methods import GPTQ, RoundToNearest
from kogata.methods.base.method import Method
from kogata.network import surgery
from kogata.network.sites import selected_sites

SIZE = 16
Forward = Callable[["Weight", Tensor], Tensor]


class Weight(nn.Module):
    """One weight, with constants beside it, in a forward that is given."""

    def __init__(self, forward: Forward, shape: tuple[int, ...] = (SIZE, SIZE)) -> None:
        super().__init__()
        self.w, self.run = nn.Parameter(torch.randn(*shape) / 4), forward
        self.register_buffer("each", torch.logspace(-1, 1, SIZE)[torch.randperm(SIZE)])
        self.register_buffer("mask", (torch.rand(SIZE, SIZE) < 0.5).float())
        self.each: Tensor
        self.mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def inputs(count: int = 3, rows: int = 32) -> list[Tensor]:
    """Correlated inputs ``[rows, SIZE]``, on which compensated rounding pays."""
    mix = torch.randn(SIZE, SIZE) * torch.logspace(0, -1.5, SIZE)[:, None] @ torch.randn(SIZE, SIZE)
    return [torch.randn(rows, SIZE) @ mix for _ in range(count)]


def gathered(model: nn.Module, batches: list[Any]) -> dict[str, Gathered]:
    """What one pass tells of each weight."""
    job = prepare(model.eval(), Task(calibration=batches))
    needs = dict.fromkeys(selected_sites(job), frozenset({Stat.GRAM}))
    return {site.name: found for site, found in gather(job, needs, surgery.clone(job.model))}


def gram(model: nn.Module, batches: list[Any], name: str = "w") -> Tensor:
    """The Gram matrices of one weight."""
    found = gathered(model, batches)[name]
    assert found.gram_GII is not None, found.unseen
    return found.gram_GII


def of_rows(*rows: Tensor) -> Tensor:
    """``XᵀX / rows``."""
    x_NI = torch.cat(rows).detach()
    return x_NI.T @ x_NI / len(x_NI)


def error(method: Method, model: nn.Module, batches: list[Any]) -> float:
    """The relative squared error of the outputs."""
    job = prepare(model.eval(), Task(calibration=batches))
    after = method.apply(job).model
    with torch.no_grad():
        wanted, found = (torch.cat([each(x) for x in batches]) for each in (job.model, after))
    return float((found - wanted).square().sum() / wanted.square().sum())


def rounds_better(model: nn.Module, batches: list[Any]) -> None:
    assert error(GPTQ(bits=3), model, batches) < 0.7 * error(RoundToNearest(bits=3), model, batches)
