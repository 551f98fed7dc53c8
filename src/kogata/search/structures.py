"""Which structure suits which layer: the error of the layer's outputs under each structure, all at the same size.

For a weight W, its approximation V, and the Gram matrix G = XᵀX / rows of its inputs X on the calibration data, the error is
    ‖X (W − V)ᵀ‖² / ‖X Wᵀ‖² = tr((W − V) G (W − V)ᵀ) / tr(W G Wᵀ).
No layer is changed, so all inputs are those of the original model. Structures are compared without training. Training would
lower all errors, those of good approximations least.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from torch import Tensor, nn

from kogata.calibration.gather import gather
from kogata.calibration.prepare import first_job
from kogata.calibration.stats import Stat, Stats, power
from kogata.errors import DataError, NotApplicable, UsageError
from kogata.job import Site, Task
from kogata.methods.base.selection import wrong_kind
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels.sizes import BITS, SLACK
from kogata.network.sites import form_at, leaves_of, selected_sites
from kogata.search.candidates import STRUCTURES, YARDSTICKS
from kogata.system.progress import bar


@dataclass(frozen=True, kw_only=True)
class Score:
    """The result of one structure on one layer; ``error`` is None if the structure is refused, and ``note`` says why."""

    structure: str
    error: float | None = None  # relative squared error of the outputs
    kept: int | None = None  # number of stored values
    bytes: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class LayerScores:
    """The results for one layer: all structures, and methods for comparison (yardsticks), at the same size."""

    site: str
    shape: tuple[int, ...]
    parameters: int
    structures: tuple[Score, ...]
    yardsticks: tuple[Score, ...]

    @property
    def best(self) -> Score | None:
        """The structure with the least error, the first of equal ones; None when all are refused."""
        return min((score for score in self.structures if score.error is not None), key=_error, default=None)


def scores(model: nn.Module, task: Task, fraction: float, *, seed: int = 0) -> tuple[LayerScores, ...]:
    """The output error of each structure at ``fraction``, in (0, 1), of the bytes of each layer with observable inputs.

    Only one Gram matrix and one weight are in memory at a time. Raises UsageError for another fraction, and DataError when
    weights, inputs or results are not finite, or when there is no calibration data or no suitable layer.
    """
    if not 0 < fraction < 1:
        raise UsageError(
            f"structure: fraction is {fraction}; expected a part of the layer's size between 0 and 1, such as 0.25."
        )
    job = first_job(model, task, seed=seed)
    needs = dict.fromkeys(selected_sites(job), frozenset({Stat.GRAM}))
    found: list[LayerScores] = []
    with bar("measuring structures", len(needs)) as progress, closing(gather(job, needs, model)) as gathered:
        for site, statistics in gathered:
            root = form_at(model, site)
            for path, leaf, part in leaves_of(root, site):  # one, or one for each matrix of a stack
                gram_GII = statistics.of(root, path).gram_GII
                if gram_GII is not None:
                    found.append(layer_scores(leaf.values.detach().float().cpu(), part, gram_GII, fraction))
            progress.advance(site.name)
    if not found:
        raise DataError(f"structure: {type(model).__name__} has no linear or convolutional layer with observable inputs.")
    order = {site.name: n for n, site in enumerate(needs)}
    return tuple(sorted(found, key=lambda layer: order[layer.site]))


def layer_scores(weight: Tensor, site: Site, gram_GII: Tensor, fraction: float) -> LayerScores:
    """The results of all candidates for one float32 weight."""
    silent = power(weight, gram_GII) == 0

    def measured(candidates: Sequence[type[WeightMethod]]) -> tuple[Score, ...]:
        if silent:
            note = "its outputs are zero on the calibration data, so errors cannot be compared"
            return tuple(Score(structure=kind.ABOUT.name, note=note) for kind in candidates)
        return tuple(_score(kind, weight, site, gram_GII, fraction) for kind in candidates)

    return LayerScores(
        site=site.name, shape=site.shape, parameters=weight.numel(), structures=measured(STRUCTURES),
        yardsticks=measured(YARDSTICKS),
    )  # fmt: skip


def _score(kind: type[WeightMethod], weight: Tensor, site: Site, gram_GII: Tensor, fraction: float) -> Score:
    name, method = kind.ABOUT.name, kind.sized(site.shape, fraction)
    if method is None:
        return Score(structure=name, note=f"it has no setting that stores this shape in {fraction:g} of its bytes")
    if reason := wrong_kind(method.ABOUT, site):
        return Score(structure=name, note=reason)
    try:
        form = method.encode(weight, site, Stats(gram_GII=gram_GII))
    except NotApplicable as refusal:
        return Score(structure=name, note=str(refusal))
    size, budget = form.stored_bits() / 8, fraction * BITS * weight.numel() / 8
    if size > SLACK * budget:
        return Score(structure=name, note=f"it would take {size:,.0f} bytes; {fraction:g} of the layer is {budget:,.0f}")
    missing = weight - form.dense().detach()
    error = power(missing, gram_GII) / power(weight, gram_GII) if missing.isfinite().all() else math.nan
    if not math.isfinite(error):
        raise DataError(f"structure: {site.name} of shape {site.shape} became NaN or infinite under {name}.")
    return Score(structure=name, error=error, kept=form.kept(), bytes=size)


def _error(score: Score) -> float:
    return math.inf if score.error is None else score.error
