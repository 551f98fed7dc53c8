"""Calibration: one streamed pass that gathers what methods need to know of a layer's inputs, and the loss of a change."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kogata.calibration.batches import calibration_batches
from kogata.calibration.gradients import gradient_statistics
from kogata.calibration.normalization import Moments, follows
from kogata.calibration.sequential import Visit, in_turn
from kogata.calibration.stats import GRADIENTS, INPUTS, Gathered, Gradients, Stat
from kogata.errors import DataError
from kogata.job import Job, Site
from kogata.network.batch import call, evaluating
from kogata.network.sites import form_of
from kogata.network.views import InputRows, input_rows_of
from kogata.system import memory

Gathering = Generator[tuple[Site, Gathered], None, None]


def gather(
    job: Job, needs: Mapping[Site, frozenset[Stat]], model: nn.Module, gradients: Mapping[str, Gradients] | None = None
) -> Gathering:
    """Each site with what it needs to know of its layer, in the order in which ``model`` runs, while the caller changes it.

    Inputs are those that come out of what the caller has made of the layers before: one pass, which holds the statistics of
    one layer. Batch normalization behind what was changed gets the statistics of the calibration data that now reach it. For
    ``Stat.CROSS`` each batch also runs through ``job.model``, beside its run through ``model``. Gradients are those of
    ``job.model``: the given ones, by the name of the site, or gathered before. Linear layers, one- and two-dimensional
    convolutions and attention projections have inputs to look at; for other sites, and for layers that never run, they are
    None. Sites that need none and whose layers cannot be seen come first; without any need of inputs, all come in their order.
    """
    gradients = gradients_of(job, needs) if gradients is None else gradients
    left = {site.name: site for site in needs}
    if any(wanted & INPUTS for wanted in needs.values()):
        for site, wanted in needs.items():
            if not wanted & INPUTS and input_rows_of(model, site) is None:
                yield left.pop(site.name), Gathered(gradients=gradients.get(site.name, Gradients()))
        with closing(_arrivals(job, needs, model)) as arrivals:
            for site, sums in arrivals:
                yield left.pop(site.name), sums.gathered(site, gradients.get(site.name, Gradients()))
    for name, site in left.items():
        yield site, Gathered(gradients=gradients.get(name, Gradients()))


def gradients_of(job: Job, needs: Mapping[Site, frozenset[Stat]]) -> dict[str, Gradients]:
    """The gradients at ``job.model`` of each site that needs them, by its name: one pass for all."""
    wanted = {site: found for site, stats in needs.items() if (found := stats & GRADIENTS)}
    if not wanted:
        return {}
    batches = calibration_batches(job.model, job.task)
    return gradient_statistics(job, batches, list(wanted), frozenset().union(*wanted.values()))


def _arrivals(job: Job, needs: Mapping[Site, frozenset[Stat]], model: nn.Module) -> Generator[tuple[Site, _Sums], None, None]:
    """Each site whose inputs can be seen, when all batches have arrived at it; its sums are dropped when the next one comes."""
    watched = {site.name: (site, *view) for site in needs if (view := input_rows_of(model, site)) is not None}
    sums = {name: _Sums(view, needs[site]) for name, (site, _, view) in watched.items()}
    norms = {name: (module, Moments()) for name, module in model.named_modules() if follows(module)}
    layers: list[tuple[str, nn.Module, Visit]] = [(name, module, sums[name]) for name, (_, module, _) in watched.items()]
    layers += [(name, module, moments) for name, (module, moments) in norms.items()]
    changed, models = False, [model]
    if any(Stat.CROSS in wanted for wanted in needs.values()):
        models = [job.model, model]  # the unchanged run of a batch arrives just before the changed one
        unchanged = [(name, input_rows_of(job.model, site)) for name, (site, _, _) in watched.items()]
        layers += [(name, view[0], sums[name].unchanged) for name, view in unchanged if view is not None]
    with memory.returned(), evaluating(job.model), evaluating(model):
        forwards = [partial(call, each, inputs) for inputs, _ in calibration_batches(model, job.task) for each in models]
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
    return form_of(module, site.parameter) or getattr(module, site.parameter)


class _Sums:
    """Running sums of one layer's statistics."""

    def __init__(self, view: InputRows, needs: frozenset[Stat]) -> None:
        self.view, self.needs, self.rows = view, needs, 0
        self.square: Tensor | None = None
        self.gram: Tensor | None = None
        self.cross: Tensor | None = None
        self.unpaired = list[Tensor]()  # pieces of the unchanged run of one batch, whose changed run comes next

    def unchanged(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the inputs of one call in the unchanged model, until the same call in the changed one."""
        if Stat.CROSS not in self.needs:
            return
        self.unpaired += [x_GNI.clone() for x_GNI in self.view(layer, args, kwargs)]  # what follows may change them in place

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Add the inputs of one call."""
        if not self.needs & INPUTS:
            return
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
