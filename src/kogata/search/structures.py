"""Which structure fits which layer: the error of its outputs under each, all at one size.

For a weight W whose inputs X on the calibration data have the gram G = XᵀX / rows, and what a method makes of it, V:
    ‖X (W − V)ᵀ‖² / ‖X Wᵀ‖² = tr((W − V) G (W − V)ᵀ) / tr(W G Wᵀ).
No layer is changed: every one sees the inputs of the model as it is. Structures are compared before any training, which lowers
all errors, but those of good fits least.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from torch import Tensor, nn

from kogata.calibration.gather import gather
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Stat, Stats, power
from kogata.errors import DataError, NotApplicable, UsageError
from kogata.job import Site, Task
from kogata.network.sites import form_at, leaves_of, selected_sites
from kogata.search.candidates import BITS, STRUCTURES, YARDSTICKS, Candidate
from kogata.system.progress import bar

SLACK = 1.05  # of the size that is allowed: the order of filters or the part of each costs a few bits, whatever the settings


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one structure costs one layer; ``error`` is None where it is refused, and ``note`` says why."""

    structure: str
    error: float | None = None  # relative squared error of the outputs
    kept: int | None = None  # numbers that it stores
    bytes: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class LayerScores:
    """One layer: every structure, and the yardsticks, which are no structures, at the same size."""

    site: str
    shape: tuple[int, ...]
    parameters: int
    structures: tuple[Score, ...]
    yardsticks: tuple[Score, ...]

    @property
    def best(self) -> Score | None:
        """The structure of the least error; of equal ones the first. None when all are refused."""
        return min((score for score in self.structures if score.error is not None), key=_error, default=None)


def scores(model: nn.Module, task: Task, fraction: float, *, seed: int = 0) -> tuple[LayerScores, ...]:
    """Each layer whose inputs can be seen, with the output error of each structure at ``fraction`` (in (0, 1)) of its bytes.

    Memory is that of one layer's gram and weight at a time. Raises UsageError for another fraction, and DataError where
    weights, inputs or the results are not finite, or where there is no calibration data or no layer to look at.
    """
    if not 0 < fraction < 1:
        raise UsageError(
            f"structure: fraction is {fraction}; expected a part of the layer's size between 0 and 1, such as 0.25."
        )
    job = prepare(model, task, seed=seed)
    sites, needs = selected_sites(job), frozenset({Stat.GRAM})
    found: list[LayerScores] = []
    with bar("measuring structures", len(sites)) as progress, closing(gather(job, sites, needs, model)) as gathered:
        for site, statistics in gathered:
            root = form_at(model, site)
            for path, leaf, part in leaves_of(root, site):  # one, or one for each matrix of a stack
                gram_GII = statistics.of(root, path).gram_GII
                if gram_GII is not None:
                    found.append(layer_scores(leaf.values.detach().float().cpu(), part, gram_GII, fraction))
            progress.advance(site.name)
    if not found:
        raise DataError(f"structure: {type(model).__name__} has no linear or convolutional layer whose inputs can be seen.")
    order = {site.name: n for n, site in enumerate(sites)}
    return tuple(sorted(found, key=lambda layer: order[layer.site]))


def layer_scores(weight: Tensor, site: Site, gram_GII: Tensor, fraction: float) -> LayerScores:
    """All candidates on one float32 weight."""
    silent = power(weight, gram_GII) == 0

    def measured(candidates: Sequence[tuple[str, Candidate]]) -> tuple[Score, ...]:
        if silent:
            note = "its outputs are zero on the calibration data, so that there is nothing to keep"
            return tuple(Score(structure=name, note=note) for name, _ in candidates)
        return tuple(_score(name, make, weight, site, gram_GII, fraction) for name, make in candidates)

    return LayerScores(
        site=site.name, shape=site.shape, parameters=weight.numel(), structures=measured(STRUCTURES),
        yardsticks=measured(YARDSTICKS),
    )  # fmt: skip


def _score(name: str, make: Candidate, weight: Tensor, site: Site, gram_GII: Tensor, fraction: float) -> Score:
    method = make(site.shape, fraction)
    if method is None:
        return Score(structure=name, note=f"it has no setting for {fraction:g} of this shape")
    if site.kind not in method.ABOUT.layers:
        return Score(structure=name, note=f"it is for {', '.join(method.ABOUT.layers)} layers, this is {site.kind}")
    try:
        form = method.encode(weight, site, Stats(gram_GII=gram_GII))
    except NotApplicable as refusal:
        return Score(structure=name, note=str(refusal))
    size, budget = form.stored_bits() / 8, fraction * BITS * weight.numel() / 8
    if size > SLACK * budget:
        return Score(structure=name, note=f"it would hold {size:,.0f} bytes, {fraction:g} of the layer are {budget:,.0f}")
    missing = weight - form.dense().detach()
    error = power(missing, gram_GII) / power(weight, gram_GII) if missing.isfinite().all() else math.nan
    if not math.isfinite(error):
        raise DataError(f"structure: {site.name} of shape {site.shape} became NaN or infinite under {name}.")
    return Score(structure=name, error=error, kept=form.kept(), bytes=size)


def _error(score: Score) -> float:
    return math.inf if score.error is None else score.error
