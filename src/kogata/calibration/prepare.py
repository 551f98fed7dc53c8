"""A user's model and task become a job, after everything that could go wrong later has been checked."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from kogata.calibration.batches import first_batch
from kogata.calibration.probe import Probe
from kogata.calibration.watch import Watch
from kogata.errors import DataError, KogataError
from kogata.job import Job, Role, Seen, Task
from kogata.network import surgery
from kogata.network.batch import evaluating
from kogata.network.originals import refuse_shared_code
from kogata.network.sites import left_alone, sites_of, unwrapped
from kogata.system.modes import ordinary


@ordinary()
def prepare(model: nn.Module, task: Task, *, seed: int = 0) -> Job:
    """A job of your own, for methods applied one by one and training in a loop of your own.

    The job's model is a copy: what methods make of it shares nothing with ``model``, and may be trained, moved and cast freely.
    Models made from the same job share the tensors that no method changed; prepare another job for an independent model.
    ``model`` itself is the job's ``reference``, the teacher of every recovery. Raises DataError when the model has no weights,
    or weights that are NaN, infinite or complex; when it cannot be copied as a whole; or when the calibration data is empty or
    gives a loss that is not finite.

    >>> import torch, kogata
    >>> from kogata.methods import MagnitudePruning
    >>> net, x = torch.nn.Linear(64, 10), torch.randn(8, 64)
    >>> job = kogata.prepare(net, kogata.Task(calibration=[x]))
    >>> model = MagnitudePruning(sparsity=0.9).apply(job).model
    >>> optimizer = torch.optim.Adam(model.parameters())  # trains the kept weights only
    >>> model(x).square().mean().backward()
    >>> optimizer.step()
    """
    job = first_job(model, task, seed=seed)
    return replace(job, model=surgery.clone(model, share=False))


def first_job(model: nn.Module, task: Task, *, seed: int = 0) -> Job:
    """The first job of a run. It is as :func:`prepare` makes it, except that its model is ``model`` itself.

    Methods never change the model of a job, so that a run needs no copy.
    """
    model = unwrapped(model)
    _refuse_unusable(model)
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            continue  # extra state of a module
        if tensor.is_complex():
            raise DataError(f"model: {name} of shape {tuple(tensor.shape)} is complex; only real weights can be compressed.")
        # The extremes are NaN if any value is, and need no tensor of the size of the weight.
        if tensor.is_floating_point() and tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise DataError(
                f"model: {name} of shape {tuple(tensor.shape)} holds {count} NaN or infinite values; every weight must be "
                "finite. Load another checkpoint or train again."
            )
    for field in ("calibration", "train"):
        if isinstance(getattr(task, field), Iterator):
            raise DataError(
                f"task {task.name!r}: {field} is an iterator, empty after one pass; give a list, a DataLoader, or another "
                "object that can be iterated again."
            )
    if not sites_of(model):
        reasons = "".join(f" {name}: {reason}." for name, reason in left_alone(model).items())
        raise DataError(f"model: {type(model).__name__} has no weight that can be compressed.{reasons}")
    job = Job(model=model, reference=model, task=task, seed=seed)
    try:
        _refuse_ambiguous(model, task)
        inputs = Probe(job).inputs
        refuse_shared_code(model, inputs)
        return replace(job, seen=_seen(model, inputs))
    except KogataError:
        raise
    except Exception as error:  # whatever the user's model or loss raises
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"task {task.name!r}: the model fails on the first calibration batch: {reason}") from error


def _refuse_unusable(model: nn.Module) -> None:
    """Raises DataError for modules and tensors whose numbers are not there, or not in a form that can be worked with."""
    for path, module in model.named_modules():
        where, kind = path or "the model itself", type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise DataError(f"model: {where} is TorchScript, whose weights cannot be replaced; give the module it was made of.")
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
            raise DataError(
                f"model: {where} ({kind}) is quantized already, so its weights are packed; give the model in floating point."
            )
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        reason = ""
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            reason = "has no shape yet; call the model once on a batch, so that its lazy layers are made"
        elif tensor.is_meta:
            reason = "is on the meta device, which holds no numbers; load the weights first"
        elif tensor.layout != torch.strided:
            reason = f"has the layout {tensor.layout}; only dense tensors can be stored. Make it dense with .to_dense()"
        elif tensor.is_inference():
            reason = "was made in inference mode, so that it has no gradients; build or load the model outside of that mode"
        elif tensor.is_quantized:
            reason = "is a quantized tensor; give the model in floating point"
        elif tensor.is_floating_point() and tensor.itemsize < 2:
            reason = f"has the dtype {tensor.dtype}, in which PyTorch does not calculate; convert it with .to(torch.bfloat16)"
        if reason:
            raise DataError(f"model: {name} {reason}.")


def _refuse_ambiguous(model: nn.Module, task: Task) -> None:
    """Raises DataError where the second tensor of a calibration batch may be a target or another input of the model.

    A pair is ``(inputs, targets)``. Without a loss nothing reads targets, and a pair whose first part is a bare tensor may come
    from a dataset of two inputs, such as tokens and their mask. It is refused where the model's forward takes a second tensor.
    """
    if task.loss is not None or callable(task.calibration):
        return
    inputs, targets = first_batch(model, task)
    places = [
        part for part in inspect.signature(model.forward).parameters.values()
        if part.kind in (part.POSITIONAL_ONLY, part.POSITIONAL_OR_KEYWORD)
    ]  # fmt: skip
    takes = [part for part in places[1:2] if part.default is part.empty or part.default is None]
    if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor) or not takes:
        return
    raise DataError(
        f"task {task.name!r}: a calibration batch is a pair of tensors, of which the second may be a target or the input "
        f"{takes[0].name!r} of {type(model).__name__}. Give ((first, second), None) if it is an input, ((first,), second) if "
        "it is a target, or a dictionary of the inputs by name."
    )


def _seen(model: nn.Module, inputs: Any) -> dict[str, Seen]:
    """What one forward shows of how the model multiplies its weights."""
    watch = Watch(model, [site for site in sites_of(model) if site.role is Role.MATRIX], lambda name, placement: None)
    with evaluating(model), watch.listening(lambda name, look: None):
        watch.run(inputs)
    return watch.seen()
