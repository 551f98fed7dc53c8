"""How much the loss depends on errors of a layer's outputs: the Fisher information of the outputs.

An error δ of the outputs of a layer raises the loss of a sample by about ½ Σ g² δ², summed over its outputs and positions. g is
the gradient of the log-likelihood at an output, for a label that is drawn from the model itself (Martens and Grosse 2015,
1503.05671, section 2). So no targets are needed; and since, for drawn labels, the gradients of different samples are
independent and of mean zero, one backward pass serves a whole batch. A model whose outputs are no class scores has the loss
‖output − original's‖² / 2, whose gradient is that of v · output with random signs v.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from kogata.calibration.batches import calibration_batches
from kogata.calibration.watch import Watch
from kogata.errors import DataError
from kogata.job import Job, Site
from kogata.network import surgery
from kogata.network.batch import length, part, tensors
from kogata.network.placement import Placement
from kogata.network.rows import first_rows
from kogata.network.sites import form_at

SAMPLES = 32  # of one backward pass, whose activations are all held


def sensitivities(job: Job, sites: Sequence[Site]) -> dict[str, tuple[Tensor | None, dict[str, float]]]:
    """For each site by name, how sensitive the loss of one sample is to its outputs and to its entries.

    The first, ``[rows of all matrices]`` and float64, is the mean over samples of the squared gradient at one output, summed
    over positions; None where the outputs of the operation are not seen. The second is the mean squared gradient of one entry
    of each leaf, by the leaf's path. Both are those of ``job.model`` in evaluation mode.
    Raises DataError when the outputs of the model, or the gradients, are not finite.
    """
    model = surgery.clone(job.model, share=False).eval().requires_grad_(False)
    for site in sites:
        if site.layout is not None:  # its leaves must be what the forward computes with
            surgery.hold(model, site, form_at(model, site))
    leaves = {(s.name, path): leaf.values.requires_grad_() for s in sites for path, leaf in form_at(model, s).leaves()}
    sums, squares = dict[str, Tensor](), dict.fromkeys(leaves, 0.0)
    watch = Watch(model, sites, lambda name, placement: None)
    watch.result = partial(_follow, sums)
    labels, samples = torch.Generator().manual_seed(job.seed), 0
    with watch.listening(lambda name, look: None):
        for inputs, targets in _pieces(job):
            samples += length(inputs)
            loss = _likelihood(watch.run(inputs), targets, labels)
            if not torch.isfinite(loss):
                raise DataError(f"task {job.task.name!r}: the model's outputs are NaN or infinite on the calibration data.")
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            for key, gradient in zip(leaves, cast("Sequence[Tensor | None]", found), strict=True):
                squares[key] += 0.0 if gradient is None else float(gradient.double().square().mean())
    known = {s.name: (sums[s.name] / samples if s.name in sums else None, dict[str, float]()) for s in sites}
    for (name, path), square in squares.items():
        known[name][1][path] = square / samples
    for name, (outputs_O, entries) in known.items():
        if not all(torch.isfinite(torch.tensor(list(entries.values())))) or not (
            outputs_O is None or outputs_O.isfinite().all()
        ):
            raise DataError(f"calibration: the gradients of {name} are NaN or infinite; check the data and the model.")
    return known


def class_axis(output: Any, targets: Any) -> int | None:
    """The axis of a model's output along which the scores of the classes lie; None where they are no class scores.

    They are where whole numbers are given as targets, of the output's shape without that axis; without targets, where the
    output is one tensor ``[N, C]`` of several columns.

    >>> class_axis(torch.zeros(8, 10), None), class_axis(torch.zeros(8, 5, 100), torch.zeros(8, 5, dtype=torch.long))
    (1, 2)
    >>> class_axis(torch.zeros(8, 1), torch.zeros(8, 1)) is None
    True
    """
    found = list(tensors(output))
    if len(found) != 1 or found[0].ndim < 2:
        return None
    shape = found[0].shape
    if targets is None:
        return 1 if len(shape) == 2 and shape[1] > 1 else None
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.dtype == torch.bool:
        return None
    return next((axis for axis in (1, len(shape) - 1) if shape[:axis] + shape[axis + 1 :] == targets.shape), None)


def log_probabilities(output: Any, axis: int) -> Tensor:
    """Logarithms ``[rows, classes]`` of the probabilities of the classes, from scores or from probabilities."""
    scores_NC = next(tensors(output)).movedim(axis, -1).flatten(0, -2).float()
    given = bool((scores_NC >= 0).all()) and bool((scores_NC.sum(1) - 1).abs().max() < 1e-3)
    return (scores_NC.clamp_min(1e-12).log() if given else scores_NC).log_softmax(1)


def _likelihood(output: Any, targets: Any, generator: torch.Generator) -> Tensor:
    """The sum over samples of −log p(label), for drawn labels; without classes, of v · output with random signs v."""
    axis = class_axis(output, targets)
    if axis is None:
        signs = [2 * torch.randint(2, tensor.shape, generator=generator) - 1 for tensor in tensors(output)]
        return torch.stack(
            [(t.float() * sign.to(t.device)).sum() for t, sign in zip(tensors(output), signs, strict=True)]
        ).sum()
    logs_NC = log_probabilities(output, axis)
    chances_NC = logs_NC.detach().exp().cpu()
    if not torch.isfinite(chances_NC).all():
        return logs_NC.sum()  # which the caller refuses
    labels_N = torch.multinomial(chances_NC, 1, generator=generator).to(logs_NC.device)
    return -logs_NC.gather(1, labels_N).sum()


def _pieces(job: Job) -> Iterator[tuple[Any, Any]]:
    """The calibration batches, cut where they are large and their first axis counts samples."""
    counts: bool | None = None
    for inputs, targets in calibration_batches(job.model, job.task):
        rows = length(inputs)
        if rows > SAMPLES and counts is None:
            counts = first_rows(job.model, inputs) is not inputs
        size = SAMPLES if counts else rows
        for start in range(0, rows, size):
            yield part(inputs, start, start + size), part(targets, start, start + size)


def _follow(sums: dict[str, Tensor], name: str, placement: Placement, output: Tensor) -> None:
    """Add the squared gradients of what one use of a weight gives, spread evenly over the rows that it uses."""
    if not output.requires_grad:
        return
    spans = placement.spans()
    used = sum(stop - start for start, stop in spans)
    if name not in sums:
        sums[name] = torch.zeros(placement.layout.count * placement.layout.shape[0], dtype=torch.float64)

    def add(gradient: Tensor) -> None:
        square = float(torch.linalg.vector_norm(gradient.float())) ** 2 / used
        for start, stop in spans:
            sums[name][start:stop] += square

    output.register_hook(add)
