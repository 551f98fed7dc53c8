"""Second-order rounding whose objective is the coded file: one grid for a layer, steps by one slope for the whole net.

Frantar and Alistarh, "Optimal Brain Compression", 2022 (2208.11580), for the rounding; Conzelmann and Bamler, "Reducing Storage
of Pretrained Neural Networks by Rate-Constrained Quantization and Entropy Coding", 2025 (2505.18758), for the price of bits.

Codes of any size are entropy coded, so halving a step costs one bit per weight, and nothing is clipped. A step s raises the
loss of a sample by about ½ · s² / 12 · P · F per weight. P is the mean of 1 / [H⁻¹]_jj over the columns of the layer, the
output error per squared error of a weight once the later ones have made up for it. F is the squared gradient of the loss at one
output, summed over its positions. One more bit is worth the same loss in every layer, dLoss / dbits = −ln 2 / 12 · slope, where
    s² · P · F = slope.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Annotated, final

import torch
from torch import Tensor

from kogata.calibration.batches import first_batch
from kogata.calibration.gather import gradients_of
from kogata.calibration.sensitivity import class_axis
from kogata.calibration.stats import Gradients, Stat, Stats
from kogata.errors import NotApplicable, UsageError
from kogata.forms import Form, Role
from kogata.job import Job, Site
from kogata.methods.base.goals import Survey, within_bytes, within_drop
from kogata.methods.base.guards import Damping
from kogata.methods.base.method import About
from kogata.methods.base.planned import planned_leaves
from kogata.methods.base.weight import Encode, WeightMethod, encode_sites
from kogata.methods.kernels.compensated import half, layer_of
from kogata.methods.kernels.one_grid import MOST, OneGrid
from kogata.methods.kernels.rate_curve import CurvePart
from kogata.network import surgery
from kogata.network.batch import call, evaluating
from kogata.network.sites import selected_sites
from kogata.settings import BYTES, POINTS, Range, amount


@final
@dataclass(frozen=True, kw_only=True)
class RateOBS(WeightMethod):
    """Round each layer to multiples of one step, such that the last byte of every layer is worth the same loss.

    Exactly one of three settings says how far to go. ``slope`` is step² · P · F, in units of the loss of a sample, such as 1e-8
    for an ImageNet classifier. ``bytes`` is the size of the whole file with everything in it, as a whole number, as text
    ("2.3MB"), or as a share of the dense file ("1/20", "5%"); the file lands within 1 % below it. ``drop`` is the largest
    expected drop of accuracy in points ("0.5pt"), measured on the calibration data, for models whose outputs are class scores.

    ``rate`` is λ, the price of a bit while rounding, in units of step²; 0 leaves the choice to the step alone. ``damping``,
    above 0, is added to the diagonal of the Gram matrix of the inputs, relative to its mean. Without ``data`` nothing is
    calibrated: every error of a layer counts the same, relative to the mean square of its weights.

    Raises UsageError for a budget that cannot be met, and NotApplicable for ``drop`` without class scores.

    >>> from kogata.methods import RateOBS
    >>> from kogata.storage.write import pack
    >>> from kogata.testing.models import job_of
    >>> job = RateOBS(bytes=8000).apply(job_of("conv"))
    >>> 7920 <= len(pack(job.model).data) <= 8000
    True
    """

    slope: Annotated[float, Range(gt=0, example=1e-5)] | None = None
    bytes: Annotated[int, Range(ge=1)] | str | None = None
    drop: Annotated[float, Range(gt=0)] | str | None = None
    rate: Annotated[float, Range(ge=0)] = 0.0
    damping: Damping = 0.01
    data: bool = True

    ABOUT = About(
        name="rate-obs",
        family="quantization",
        summary="one-shot rounding to a size of the file: the last byte of every layer is worth the same loss",
        paper="Frantar and Alistarh 2022, arXiv 2208.11580; Conzelmann and Bamler 2025, arXiv 2505.18758",
        needs=frozenset({Stat.GRAM, Stat.SENSITIVITY}),
        accepts=frozenset({Role.MATRIX, Role.VALUES}),
        leaves=frozenset({Role.SCALE}),
    )

    def __post_init__(self) -> None:
        """Raises UsageError unless one of slope, bytes and drop is given, and can be read."""
        super().__post_init__()
        if isinstance(self.bytes, str) and amount(self.bytes, BYTES) is None:
            raise UsageError(f"rate-obs: bytes is {self.bytes!r}; expected 1 or more, or a text such as 2.3MB, 1/20 or 5%.")
        if isinstance(self.drop, str) and (amount(self.drop, POINTS) or (0.0, True))[1]:
            raise UsageError(f"rate-obs: drop is {self.drop!r}; expected more than 0, or a text such as 0.5pt.")
        given = [name for name in ("slope", "bytes", "drop") if getattr(self, name) is not None]
        if len(given) != 1:
            raise UsageError(f"rate-obs: give exactly one of slope, bytes and drop, not {' and '.join(given) or 'none'}.")
        if self.drop is not None and not self.data:
            raise UsageError("rate-obs: drop is measured on calibration data, so data must be true; or give bytes.")

    @property
    def needs(self) -> frozenset[Stat]:
        """Nothing without data."""
        return self.ABOUT.needs if self.data else frozenset()

    def encoder(self, job: Job, sites: Sequence[Site], gradients: Mapping[str, Gradients]) -> Encode:
        """``encode``. Raises UsageError for a budget, which only a step of its own can meet."""
        if self.slope is None:
            raise UsageError("rate-obs: bytes and drop are those of the whole file; in a plan for each site give slope.")
        return self.encode

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """Codes, with one scale."""
        if self.slope is None:
            raise UsageError("rate-obs: a single layer needs a slope.")
        grid, sensitivity = self._problem(weight, site, stats)
        finest = float(weight.abs().max()) / MOST
        step = half(torch.tensor(max(math.sqrt(self.slope / (grid.cost * sensitivity)), finest)))
        return grid.form(grid.codes(float(step), self.rate), step, weight.shape)

    def apply(self, job: Job) -> Job:
        """Encode every selected layer by one slope: the given one, or that which meets the budget."""
        sites = selected_sites(job)
        gradients = gradients_of(job, dict.fromkeys(sites, self.needs))
        if self.slope is not None:
            after, found = encode_sites(job, [(self, sites)], gradients), f"slope {self.slope:.3g}"
        else:
            after, found = self._budgeted(job, sites, gradients)
        rows = after.ledger[len(job.ledger) :]
        predicted = sum(row.increase or 0.0 for row in rows)
        return replace(after, remarks=(*after.remarks, *self._assumed(job), f"{found}, predicted loss {predicted:+.3g}"))

    def _problem(self, weight: Tensor, site: Site, stats: Stats) -> tuple[OneGrid, float]:
        """The layer with its factors, and F. Raises NotApplicable when nothing tells how exact it must be."""
        sensitivity = stats.sensitivity if self.data else 1 / max(float(weight.double().square().mean()), 1e-30)
        if sensitivity is None:
            raise NotApplicable(stats.unseen)
        if not sensitivity and stats.gram_GII is None:
            raise NotApplicable(stats.unseen)
        if not sensitivity:
            raise NotApplicable("no gradient reaches it on the calibration data, so nothing tells how exact it must be")
        if stats.gram_GII is None:  # the identity: each entry is a layer of its own
            return OneGrid.of(layer_of(weight, site, replace(stats, gram_GII=torch.ones(1, 1, 1)), 0.0)), sensitivity
        return OneGrid.of(layer_of(weight, site, stats, self.damping)), sensitivity

    def _budgeted(self, job: Job, sites: Sequence[Site], gradients: Mapping[str, Gradients]) -> tuple[Job, str]:
        """The job within the budget, and how it was met."""
        survey = self._surveyed(job, sites, gradients)

        def run(slope: float) -> Job:
            return encode_sites(job, [(replace(self, slope=slope, bytes=None, drop=None), sites)], gradients)

        if not survey.parts:
            return run(1.0), ""  # raises NotApplicable with all reasons
        if self.bytes is not None:
            return within_bytes(job, survey, self.bytes, run)
        points = self.drop if not isinstance(self.drop, str) else (amount(self.drop, POINTS) or (0.0, False))[0]
        return within_drop(job, survey, float(points or 0.0), run)

    def _surveyed(self, job: Job, sites: Sequence[Site], gradients: Mapping[str, Gradients]) -> Survey:
        """What each leaf costs at any slope, and the model with all of them zero."""
        parts, empty = list[CurvePart](), surgery.clone(job.model)
        with closing(planned_leaves(self, job, sites, gradients)) as leaves:
            for leaf in leaves:
                try:
                    grid, sensitivity = self._problem(leaf.weight, leaf.part, leaf.stats)
                except NotApplicable:
                    continue  # it stays as it is, and the report says why
                parts.append(CurvePart.of(grid, self.rate, grid.cost * sensitivity))
                zero = grid.form(torch.zeros_like(grid.layer.weight_GOI), torch.tensor(1.0), leaf.weight.shape)
                surgery.replace(empty, leaf.site, leaf.path, zero)
        return Survey(parts=tuple(parts), empty=empty)

    def _assumed(self, job: Job) -> tuple[str, ...]:
        """What the report must say of where the loss comes from."""
        if not self.data:
            return ("no data: errors of a layer count the same in all directions, relative to the mean square of its weights",)
        inputs, targets = first_batch(job.reference, job.task)
        with evaluating(job.model) as model:
            if class_axis(call(model, inputs), targets) is not None:
                return ()
        return ("the outputs are no class scores, so the loss is half the squared error of the outputs",)
