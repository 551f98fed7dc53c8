"""Calibration: one streamed pass that gathers what methods need to know of a layer's inputs, and the loss of a change."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from kogata.calibration.batches import calibration_batches
from kogata.calibration.gradients import gradient_statistics
from kogata.calibration.normalization import Moments, following, move, recording
from kogata.calibration.sensitivity import sensitivities
from kogata.calibration.sequential import Visit, count, in_turn
from kogata.calibration.stats import GRADIENTS, INPUTS, Gathered, Gradients, Stat
from kogata.calibration.watch import Watch
from kogata.errors import DataError
from kogata.job import Job, Kind, Site
from kogata.network.batch import evaluating
from kogata.network.placement import Placement
from kogata.system import memory

Gathering = Generator[tuple[Site, Gathered], None, None]

MULTIPLIED = frozenset({Kind.LINEAR, Kind.CONV})
"""Kinds of layers whose weights multiply inputs."""


def gather(
    job: Job, needs: Mapping[Site, frozenset[Stat]], model: nn.Module, gradients: Mapping[str, Gradients] | None = None
) -> Gathering:
    """Each site with what it needs to know of its layer, in the order in which ``model`` runs, while the caller changes it.

    Inputs are those that come out of what the caller has made of the layers before: one pass, which holds the statistics of
    one layer. The running statistics of batch normalization behind what was changed move by what that changed. For
    ``Stat.CROSS`` each batch also runs through ``job.model``, beside its run through ``model``. Gradients are those of
    ``job.model``: the given ones, by the name of the site, or gathered before. A weight has inputs where an operation of the
    forward multiplies it, whatever its layer; for others they are None, and :class:`Gathered` says why. Sites that need no
    inputs come in that order too; those that nothing multiplies come first, so that the others see what became of them.
    """
    gradients = gradients_of(job, needs) if gradients is None else gradients
    if not any(wanted & INPUTS for wanted in needs.values()):
        for site in needs:
            yield site, Gathered(gradients=gradients.get(site.name, Gradients()))
        return
    left = {site.name: site for site in needs}
    watch = Watch(model, list(needs), lambda name, placement: None)
    with closing(_arrivals(job, watch, needs)) as arrivals:
        for site, sums in arrivals:
            del left[site.name]
            known = gradients.get(site.name, Gradients())
            yield site, _unseen(watch, site, known) if sums is None else sums.gathered(site, known)
    for name, site in left.items():  # what its matrices are cannot be told
        yield site, _unseen(watch, site, gradients.get(name, Gradients()))


def _unseen(watch: Watch, site: Site, gradients: Gradients) -> Gathered:
    return Gathered(gradients=gradients, unseen=f"its inputs could not be seen: {watch.unseen(site.name)}")


def gradients_of(job: Job, needs: Mapping[Site, frozenset[Stat]]) -> dict[str, Gradients]:
    """The gradients at ``job.model`` of each site that needs them, by its name: one pass for all sites.

    Those of single samples and those for drawn labels, which need no pass of their own for each sample, are two passes.
    """
    found: dict[str, Gradients] = {}
    wanted = {site: single for site, stats in needs.items() if (single := stats & GRADIENTS - {Stat.SENSITIVITY})}
    if wanted:
        batches = calibration_batches(job.model, job.task)
        found = gradient_statistics(job, batches, list(wanted), frozenset().union(*wanted.values()))
    if drawn := [site for site, stats in needs.items() if Stat.SENSITIVITY in stats]:
        for name, (outputs_O, entries) in sensitivities(job, drawn).items():
            found[name] = replace(found.get(name, Gradients()), outputs_O=outputs_O, entries=entries)
    return found


def _arrivals(
    job: Job, watch: Watch, needs: Mapping[Site, frozenset[Stat]]
) -> Generator[tuple[Site, _Sums | None], None, None]:
    """Each site when all batches have arrived at it; its sums are dropped when the next one comes.

    First those that nothing multiplies, without sums.
    """
    model, sums = watch.model, {site.name: _Sums(wanted & INPUTS) for site, wanted in needs.items()}
    watch.visit = lambda name, placement: None if name in watch.refused else sums[name].add(placement)
    norms = {name: (module, Moments()) for name, module in following(model).items()}
    layers: list[tuple[str, nn.Module, Visit]] = [(name, module, moments) for name, (module, moments) in norms.items()]
    changed, watches = False, [watch]
    crossed = [site for site, wanted in needs.items() if Stat.CROSS in wanted]
    if crossed:  # the unchanged run of a batch arrives just before the changed one
        first = Watch(job.model, crossed, lambda name, placement: sums[name].unchanged(placement))
        watches = [first, watch]
    with memory.returned(), evaluating(job.model), evaluating(model):
        batches = [inputs for inputs, _ in calibration_batches(model, job.task)]
        with recording(model) as were:  # nobody has changed it yet
            found = count([partial(watch.run, inputs) for inputs in batches], [model], layers, [watch])
        used = {name for calls in found for name in calls}
        for name, site in watch.sites.items():
            if name not in used:
                yield site, None
        forwards = [partial(each.run, inputs) for inputs in batches for each in watches]
        calls = [calls if each is watch else {name: calls[name] for name in each.sites} for calls in found for each in watches]
        with closing(in_turn(forwards, [each.model for each in watches], layers, watches, calls)) as names:
            for name in names:
                if name in norms:
                    if changed:
                        move(norms[name][0], were[name], norms[name][1])
                    continue
                if name in used and watch.fits(name):
                    yield watch.sites[name], sums[name]
                changed |= watch.replaced(name)
                sums[name].clear()
                memory.release()


class _Sums:
    """Running sums of the statistics of one weight's inputs, for each group of its rows that has inputs of its own."""

    def __init__(self, needs: frozenset[Stat]) -> None:
        self.needs, self.size = needs, 0  # rows of a group
        self.rows_G = torch.zeros(0, dtype=torch.float64)
        self.square: Tensor | None = None
        self.gram: Tensor | None = None
        self.cross: Tensor | None = None
        self.unpaired = list[Tensor]()  # pieces of the unchanged run of one batch, whose changed run comes next

    def unchanged(self, placement: Placement) -> None:
        """Keep the inputs of one use in the unchanged model, until the same use in the changed one."""
        self.unpaired += [rows.x_GNI.clone() for rows in placement.rows()]  # what follows may change them in place

    def add(self, placement: Placement) -> None:
        """Add the inputs of one use."""
        if not self.needs:
            return
        total = placement.layout.count * placement.layout.shape[0]
        for start, stop, x_GNI in placement.rows():
            x_GNI = x_GNI.float()
            each = (stop - start) // len(x_GNI)
            self._refine(math.gcd(self.size or total, start, each), total)
            chosen, repeats = slice(start // self.size, stop // self.size), each // self.size
            self.rows_G[chosen] += x_GNI.shape[1]
            if Stat.SQUARE in self.needs:
                self.square = self._added(self.square, chosen, x_GNI.square().sum(1), repeats)
            if Stat.GRAM in self.needs:
                self.gram = self._multiplied(self.gram, chosen, x_GNI, x_GNI, repeats)
            if Stat.CROSS in self.needs:
                self.cross = self._multiplied(self.cross, chosen, self._partner(x_GNI), x_GNI, repeats)

    def clear(self) -> None:
        """Free the memory."""
        self.square = self.gram = self.cross = None

    def gathered(self, site: Site, gradients: Gradients) -> Gathered:
        """The means."""
        for total in (self.square, self.gram, self.cross):
            if total is not None and not torch.isfinite(torch.stack(total.aminmax())).all():  # without a mask of its size
                raise DataError(f"calibration: the inputs of {site.name} are NaN or infinite; check the data.")
        counts_G = self.rows_G.clamp_min(1)
        square, gram, cross = (
            None if total is None else total.div_(counts_G.to(total).reshape(-1, *(1 for _ in total.shape[1:]))).cpu()
            for total in (self.square, self.gram, self.cross)
        )
        return Gathered(square_GI=square, gram_GII=gram, cross_GII=cross, reached_G=self.rows_G > 0, gradients=gradients)

    def _partner(self, x_GNI: Tensor) -> Tensor:
        """What the unchanged model had in the place of ``x_GNI``."""
        if not self.unpaired or self.unpaired[0].shape != x_GNI.shape:
            raise DataError(
                "calibration: a batch takes another way through the changed model than through the model before, so their "
                "inputs cannot be compared; choose a method, or settings, that do without."
            )
        return self.unpaired.pop(0).float()

    def _refine(self, size: int, total: int) -> None:
        """Cut all rows into groups of ``size``."""
        if size == self.size:
            return
        repeats = self.size // size
        if self.size:
            self.rows_G = self.rows_G.repeat_interleave(repeats)
            self.square, self.gram, self.cross = (
                None if part is None else part.repeat_interleave(repeats, 0) for part in (self.square, self.gram, self.cross)
            )
        else:
            self.rows_G = torch.zeros(total // size, dtype=torch.float64)
        self.size = size

    def _added(self, total: Tensor | None, chosen: slice, part: Tensor, repeats: int) -> Tensor:
        """A total with ``part`` added to the chosen groups, each of its entries to so many of them."""
        if total is None:
            total = part.new_zeros(len(self.rows_G), *part.shape[1:])
        total[chosen] += part.repeat_interleave(repeats, 0) if repeats > 1 else part
        return total

    def _multiplied(self, total: Tensor | None, chosen: slice, left_GNI: Tensor, right_GNI: Tensor, repeats: int) -> Tensor:
        """The same for the products of rows, without a copy of the total's size where all groups have inputs of their own."""
        if repeats > 1:
            return self._added(total, chosen, left_GNI.mT @ right_GNI, repeats)
        if total is None:
            total = right_GNI.new_zeros(len(self.rows_G), right_GNI.shape[2], right_GNI.shape[2])
        total[chosen].baddbmm_(left_GNI.mT, right_GNI)
        return total
