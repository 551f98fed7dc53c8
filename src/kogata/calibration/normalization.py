"""Running statistics of batch normalization follow what a step changes in the layers before it.

Frantar, Alistarh, "Optimal Brain Compression", 2022 (2208.11580) resets the statistics after compression to those of the
calibration data. Here they move by the difference that the step makes on the same samples. So a net that is left as it was
keeps its statistics to the last bit, and a few samples do not replace what training has learnt from many.

Every method that changes what a model computes ends its step with :func:`renewed`. ``gather`` also moves statistics on the way,
for the layers that are encoded after them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kogata.calibration.batches import calibration_batches
from kogata.calibration.sequential import in_turn
from kogata.job import Job
from kogata.network import depth
from kogata.network.batch import call, evaluating, length
from kogata.network.nesting import mapped
from kogata.network.sharing import place_of
from kogata.system import memory

ENOUGH = 1024  # samples that both models run on: more would change what the statistics move by no more than a few percent
PRIOR = 1.0  # samples that the statistics from training count for when the difference is estimated


def follows(layer: nn.Module) -> bool:
    """Whether a layer normalizes by running statistics."""
    return isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None  # pyright: ignore[reportPrivateUsage] - the only common base


def following(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of ``model`` whose running statistics follow a step, by name.

    Statistics that several layers share stay as they are: what reaches one of these layers says nothing of the others.
    """
    found = {name: module for name, module in model.named_modules() if follows(module)}
    users = Counter(place_of(module.get_buffer("running_mean")) for module in found.values())
    return {name: module for name, module in found.items() if users[place_of(module.get_buffer("running_mean"))] == 1}


class Moments:
    """Running sums of the inputs ``[N, C, ...]`` of one such layer; a visit of :mod:`kogata.calibration.sequential`.

    ``samples`` counts N: the values of one image depend on each other. ``uses`` counts calls. Where maps share statistics in
    groups, as in :class:`kogata.nn.filters.GroupBatchNorm2d`, those of a group are consecutive.
    """

    def __init__(self) -> None:
        self.samples, self.rows, self.uses = 0, 0, 0
        self.sum_C, self.square_C = torch.zeros(()), torch.zeros(())

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Add the inputs of one call."""
        inputs: Tensor = args[0] if args else kwargs["input"]
        self.uses += 1
        if not inputs.numel():
            return
        x = inputs if inputs.dtype in (torch.float32, torch.float64) else inputs.float()
        # of one call in the precision of the inputs, over all calls in float64: a copy of large maps would take longer
        spread_M, mean_M = (part.double() for part in torch.var_mean(x, [n for n in range(x.ndim) if n != 1], correction=0))
        places = x.numel() // len(mean_M)
        mean_CG, spread_CG = (part.reshape(len(layer.get_buffer("running_mean")), -1) for part in (mean_M, spread_M))
        self.samples += len(inputs)
        self.rows += places * mean_CG.shape[1]
        self.sum_C = self.sum_C.to(mean_CG) + places * mean_CG.sum(1)
        self.square_C = self.square_C.to(mean_CG) + places * (spread_CG + mean_CG.square()).sum(1)

    def of(self, channels: Tensor) -> Moments:
        """Those of some of the channels."""
        chosen = Moments()
        chosen.samples, chosen.rows = self.samples, self.rows
        index = channels.to(self.sum_C.device)
        chosen.sum_C, chosen.square_C = self.sum_C[index], self.square_C[index]
        return chosen

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of each channel, float64."""
        mean_C = self.sum_C / self.rows
        return mean_C, (self.square_C / self.rows - mean_C.square()).clamp_min(0)


@contextmanager
def recording(model: nn.Module) -> Generator[dict[str, Moments], None, None]:
    """The moments of the inputs of each normalization layer of ``model``, by its name, over the forwards within the body."""
    found = {name: Moments() for name in following(model)}
    with ExitStack() as stack:
        for name, moments in found.items():
            stack.callback(model.get_submodule(name).register_forward_pre_hook(moments, with_kwargs=True).remove)
        yield found


def move(layer: nn.Module, before: Moments, after: Moments) -> bool:
    """Move the statistics of ``layer`` by the difference between two moments; whether there is any.

    The mean moves by the difference of the means, as it does when a bias changes. The variance is multiplied by the ratio of
    the variances, as it is when a weight is scaled: unlike a difference, this keeps it positive, and is right when the
    calibration data has another variance than the training data. The old variance enters both sides of the ratio with the
    weight of ``PRIOR`` samples, which keeps the ratio finite where a channel is constant; the difference of the means shrinks
    in the same proportion. Both matter only where there are few samples.

    The layer gets new buffers, because other copies of the model share the old ones.
    """
    if not before.rows or not after.rows or before.sum_C.shape != after.sum_C.shape:
        return False
    if torch.equal(before.sum_C, after.sum_C) and torch.equal(before.square_C, after.square_C):
        return False
    old_mean, old_variance = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
    if old_mean.shape != after.sum_C.shape:
        return False
    (mean_C, variance_C), (new_mean_C, new_variance_C) = before.mean_and_variance(), after.mean_and_variance()
    known = before.samples / (before.samples + PRIOR)
    prior_C = (1 - known) * old_variance.to(variance_C).clamp_min(torch.finfo(torch.float32).tiny)
    ratio_C = (known * new_variance_C + prior_C) / (known * variance_C + prior_C)
    moved = False
    for name, old, value_C in (
        ("running_mean", old_mean, old_mean.to(mean_C) + known * (new_mean_C - mean_C)),
        ("running_var", old_variance, old_variance.to(variance_C) * ratio_C),
    ):
        value = _as_exact(value_C, old)
        value = torch.where(torch.isfinite(value), value, old)
        if not torch.equal(value, old):
            setattr(layer, name, value)
            moved = True
    return moved


def _as_exact(value_C: Tensor, old_C: Tensor) -> Tensor:
    """The values in the dtype of the old ones; numbers of half precision where those are such, so that a file stays small."""
    half_C = value_C.half().to(old_C)
    chosen = torch.equal(old_C.half().to(old_C), old_C) and not torch.equal(old_C.round(), old_C)  # not those of a fresh layer
    return half_C if chosen and half_C.isfinite().all() and (half_C != 0).eq(value_C != 0).all() else value_C.to(old_C)


def renewed(before: Job, after: Job, kept: Mapping[str, Tensor] | None = None) -> Job:
    """The job ``after`` a step, with the statistics of its normalization layers moved by what the step changed.

    The statistics start from those of the job ``before``, whatever was done to them while the step gathered inputs. Both
    models run once on the first ``ENOUGH`` samples of the calibration data. Nothing runs in a model without running
    statistics. The model of ``after`` is changed in place and must be a copy; ``Job.renewed`` names the layers.

    :param kept: the channels that are left, where a step removed some, by the name of the layer.
    """
    old, model = before.model, after.model
    layers = following(model)
    if not layers:
        return after
    for name, layer in layers.items():
        _restore(layer, old.get_submodule(depth.origin(name, model, old)))
    inputs = _inputs(before)
    moved = move_within(old, model, inputs, inputs, kept or {})
    return replace(after, renewed=tuple(dict.fromkeys((*after.renewed, *moved))))


def move_within(
    old: nn.Module, model: nn.Module, inputs: Sequence[Any], changed: Sequence[Any], kept: Mapping[str, Tensor]
) -> list[str]:
    """Move the statistics within ``model`` by how its layers' inputs differ from those in ``old``; the names of what moved.

    ``old`` runs on ``inputs``, and ``model`` on ``changed``, which are the same batches where nothing before the two models
    differs. The changed one runs layer by layer, so that each layer gets its inputs from those already moved.
    """
    layers = {name: (module, Moments()) for name, module in following(model).items()}
    moved = list[str]()
    if not layers:
        return moved
    origins = {name: depth.origin(name, model, old) for name in layers}
    with memory.returned(), evaluating(old), evaluating(model):
        with recording(old) as were:
            calls = [_uses(old, each, were) for each in inputs]
        expected = [{name: uses.get(origin, 0) for name, origin in origins.items()} for uses in calls]
        visits = [(name, module, moments) for name, (module, moments) in layers.items()]
        with closing(in_turn([partial(_run, model, each) for each in changed], [model], visits, (), expected)) as names:
            for name in names:
                was, (layer, now) = were.get(origins[name]), layers[name]
                if was is not None and name in kept:
                    was = was.of(kept[name])
                if was is not None and move(layer, was, now):
                    moved.append(name)
    return moved


def _uses(model: nn.Module, inputs: Any, moments: Mapping[str, Moments]) -> dict[str, int]:
    """Run the model, and say how often it calls each layer whose moments are recorded."""
    before = {name: each.uses for name, each in moments.items()}
    _run(model, inputs)
    return {name: each.uses - before[name] for name, each in moments.items()}


def _restore(layer: nn.Module, old: nn.Module) -> None:
    """Give a layer the statistics of the layer that it was, unless it has other channels now."""
    for name in ("running_mean", "running_var"):
        if layer.get_buffer(name).shape == old.get_buffer(name).shape:
            setattr(layer, name, old.get_buffer(name))


def _run(model: nn.Module, inputs: Any) -> None:
    """One forward on a copy of the inputs, which a model may change in place: both models must see the same."""
    call(model, mapped(lambda part: part.clone() if isinstance(part, Tensor) else part, inputs))


def _inputs(job: Job) -> list[Any]:
    """The inputs of the first calibration batches, until they have enough samples. A loader may shuffle: it is asked once."""
    found, samples = list[Any](), 0
    for inputs, _ in calibration_batches(job.model, job.task):
        found.append(inputs)
        samples += length(inputs)
        if samples >= ENOUGH:
            break
    return found
