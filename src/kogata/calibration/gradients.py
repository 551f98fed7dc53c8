"""Second-order statistics of the loss from gradients of single samples.

The Fisher information of a weight is the mean over samples of its squared gradient; at a minimum of a log-likelihood it is
the expected Hessian (LeCun, Denker, Solla 1990; Martens 2014, 1412.1193). The Hessian of a layer is about A ⊗ G, with A the
second moment of its inputs and G that of the gradients of its outputs (Martens and Grosse 2015, 1503.05671, equation 1).
A task without loss, or a batch without targets, has the loss ‖output − original's‖² / 2, whose expected Hessian at the
original is that of v · output with random signs v.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from kogata.calibration.stats import Gradients, Stat
from kogata.calibration.watch import Watch
from kogata.errors import DataError
from kogata.job import Job, Site, Task
from kogata.network import surgery
from kogata.network.batch import call, length, row, tensors
from kogata.network.placement import Placement
from kogata.network.rows import first_rows
from kogata.network.sites import form_at

log = logging.getLogger("kogata")


def gradient_statistics(
    job: Job, batches: Iterable[tuple[Any, Any]], sites: Sequence[Site], needs: frozenset[Stat]
) -> dict[str, Gradients]:
    """The statistics at ``job.model`` of each site by name, over ``batches`` of ``(inputs, targets)``.

    Raises DataError when one is not finite.
    """
    model = surgery.clone(job.model, share=False).eval().requires_grad_(False)
    for site in sites:
        if site.layout is not None:  # its leaves must be what the forward computes with
            surgery.hold(model, site, form_at(model, site))
    leaves = {(s.name, path): leaf.values for s in sites for path, leaf in form_at(model, s).leaves()}
    squares = {key: torch.zeros_like(leaf.detach()) for key, leaf in leaves.items() if Stat.FISHER in needs}
    watch = Watch(model, sites if Stat.GRADIENT in needs else (), lambda name, placement: None)
    outer: dict[str, Tensor] = {}
    watch.result = partial(_follow, outer)
    samples = 0
    with watch.listening(lambda name, look: None):
        for gradients in of_samples(model, job, batches, list(leaves.values()), watch.run):
            samples += 1
            for square, gradient in zip(squares.values(), gradients, strict=False):  # there are none unless they are needed
                if gradient is not None:
                    square.addcmul_(gradient, gradient)
    fisher: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for (name, path), square in squares.items():
        if not torch.isfinite(square).all():
            raise DataError(f"calibration: the gradients of {name} are NaN or infinite; check the data and the loss.")
        fisher[name][path] = square.div_(samples).cpu().float()
    return {
        site.name: Gradients(
            fisher=fisher.get(site.name, {}),
            gradient_OO=outer[site.name].div_(samples).cpu() if site.name in outer else None,
        )
        for site in sites
    }  # fmt: skip


def of_samples(
    model: nn.Module, job: Job, batches: Iterable[tuple[Any, Any]], parameters: Sequence[Tensor],
    forward: Callable[[Any], Any] | None = None,
) -> Iterator[Sequence[Tensor | None]]:  # fmt: skip
    """The gradients of each single sample's loss with respect to ``parameters`` of ``model``; None where it has none.

    ``forward`` runs the model, where that is not simply to call it.
    """
    signs = torch.Generator().manual_seed(job.seed)
    forward = forward or partial(call, model)
    for parameter in parameters:
        parameter.requires_grad_()
    for inputs, targets in batches:
        for part, wanted in _samples(model, inputs, targets):
            loss = _loss(job.task, forward(part), wanted, signs)
            yield cast("Sequence[Tensor | None]", torch.autograd.grad(loss, parameters, allow_unused=True))


def _samples(model: nn.Module, inputs: Any, targets: Any) -> Iterator[tuple[Any, Any]]:
    """Each sample of a batch with its target; the whole batch as one, with a warning, where it has no rows that are samples."""
    count = length(inputs)
    if count > 1 and first_rows(model, inputs) is inputs:
        log.warning("calibration: no single sample can be taken from a batch, so gradients are those of whole batches")
        return iter([(inputs, targets)])
    return ((row(inputs, n), row(targets, n)) for n in range(count))


def _follow(outer: dict[str, Tensor], name: str, placement: Placement, output: Tensor) -> None:
    """Sum gᵀg of the gradients g of what one use of a whole weight gives."""
    channels = placement.use.channels
    if channels is None or not placement.whole() or not output.requires_grad:
        return

    def add(gradient: Tensor) -> None:
        g_NO = gradient.detach().movedim(channels, -1).flatten(0, -2).float()
        outer[name] = outer[name].addmm_(g_NO.T, g_NO) if name in outer else g_NO.T @ g_NO

    output.register_hook(add)


def _loss(task: Task, output: Any, targets: Any, signs: torch.Generator) -> Tensor:
    """The task's loss of one sample; without one, the sum of the outputs under random signs."""
    if task.loss is not None and targets is not None:
        return task.loss(output, targets)
    parts = [(part * (2 * torch.randint(2, part.shape, generator=signs) - 1).to(part)).sum() for part in tensors(output)]
    return torch.stack(parts).sum()
