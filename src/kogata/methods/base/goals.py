"""Meeting a goal for the whole model, bytes of the file or points of accuracy, by the slope of loss per bit."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from kogata.calibration.agreement import expected_drop
from kogata.errors import NotApplicable, UsageError
from kogata.job import Job
from kogata.methods.kernels import rate_curve
from kogata.methods.kernels.rate_curve import CurvePart
from kogata.settings import BYTES, amount
from kogata.storage.dense import dense_bytes
from kogata.storage.write import pack

log = logging.getLogger("kogata")

NEAR = 0.99  # share of a budget that a file should at least use
AIM = 0.995  # share of a budget that the next pass tries to use
MOST = (
    6  # passes for a budget of bytes: it takes three, but for files of a few kB, whose size is no smooth function of the slope
)
ENOUGH = 0.7  # share of the allowed drop that need not be improved
DROP_PASSES = 5

Run = Callable[[float], Job]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What each leaf costs at any slope, and the model with all of them zero: the least that a file needs."""

    parts: tuple[CurvePart, ...]
    empty: nn.Module


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A run: its slope, the job after it, and the figure that has a limit."""

    slope: float
    job: Job
    figure: float


def within_bytes(job: Job, survey: Survey, budget: int | str, run: Run) -> tuple[Job, str]:
    """The job after ``run`` with the slope whose file has at most ``budget`` bytes, and how it was met.

    Bits are predicted from the survey, then corrected by the file of each pass. Raises UsageError when the budget is below
    what the file needs with all codes zero, or above the dense file.
    """
    dense = dense_bytes(job.reference)
    value, relative = amount(budget, BYTES) or (0.0, False) if isinstance(budget, str) else (float(budget), False)
    limit = int(value * dense) if relative else int(value)
    size = job.file_bytes or _file_bytes
    floor = size(survey.empty)
    if not floor < limit < dense:
        raise UsageError(
            f"rate-obs: bytes: {budget} is {limit:,} bytes, but the file takes {floor:,} bytes with every code zero, and "
            f"{dense:,} as it was; give a budget between them."
        )
    aim, made = AIM * limit, list[Attempt]()
    slope = rate_curve.slope_of_bits(survey.parts, 8 * (aim - floor))
    while len(made) < MOST:
        after = run(slope)
        made.append(Attempt(slope=slope, job=after, figure=size(after.model)))
        log.info("pass %d: slope %.3g gives %d of %d bytes", len(made), slope, made[-1].figure, limit)
        if any(NEAR * limit <= one.figure <= limit for one in made):
            break
        slope = _next_slope(survey, made, floor, aim)
        if any(one.slope == slope for one in made):
            break  # at the finest step
    best = max((one for one in made if one.figure <= limit), key=lambda one: one.figure, default=None)
    if best is None:
        least = int(min(one.figure for one in made))
        raise UsageError(f"rate-obs: bytes: {budget} is {limit:,} bytes, but the smallest of {len(made)} files has {least:,}.")
    return best.job, f"slope {best.slope:.3g}, {int(best.figure):,} of {limit:,} bytes after {len(made)} passes"


def within_drop(job: Job, survey: Survey, points: float, run: Run) -> tuple[Job, str]:
    """The job after ``run`` with the largest slope whose expected drop is at most ``points``, and how it was met.

    Raises NotApplicable when the outputs are no class scores, or when the model has lost more already.
    """
    before = expected_drop(job, job.model)
    if before > points:
        raise NotApplicable(
            f"the steps before have lost {before:.3g} points already, more than the {points:g} that are allowed"
        )
    made = list[Attempt]()
    slope = rate_curve.slope_of_loss(survey.parts, points / 100)
    while len(made) < DROP_PASSES or (not any(one.figure <= points for one in made) and len(made) < 2 * DROP_PASSES):
        after = run(slope)
        made.append(Attempt(slope=slope, job=after, figure=expected_drop(job, after.model)))
        log.info("pass %d: slope %.3g loses %.3g of %g points", len(made), slope, made[-1].figure, points)
        if any(ENOUGH * points <= one.figure <= points for one in made):
            break
        slope = _power_law(made, 0.9 * points)
    best = max((one for one in made if one.figure <= points), key=lambda one: one.slope, default=None)
    if best is None:
        least = min(one.figure for one in made)
        raise NotApplicable(f"no slope of {len(made)} loses {points:g} points or less; the least is {least:.3g}")
    return (
        best.job,
        f"slope {best.slope:.3g}, {best.figure:.3g} of {points:g} points expected to be lost on the calibration data",
    )


def _file_bytes(model: nn.Module) -> int:
    """Bytes of the file of a model, without an engine graph."""
    return len(pack(model).data)


def _next_slope(survey: Survey, made: Sequence[Attempt], floor: int, aim: float) -> float:
    """The slope at which the file is to be expected to have ``aim`` bytes.

    The bytes are linear in the logarithm of the slope between the two attempts nearest to the aim. The only attempt tells how
    the predicted bits are to be corrected.
    """
    near = sorted(made, key=lambda one: abs(one.figure - aim))
    if len(near) > 1 and near[0].slope != near[1].slope:
        fall = (near[1].figure - near[0].figure) / math.log(near[1].slope / near[0].slope)
        if fall < 0:
            return near[0].slope * math.exp(min(max((aim - near[0].figure) / fall, -2.0), 2.0))
    ratio = (near[0].figure - floor) / rate_curve.bits(survey.parts, near[0].slope)
    return rate_curve.slope_of_bits(survey.parts, (aim - floor) / ratio)


def _power_law(made: Sequence[Attempt], aim: float) -> float:
    """The slope at which a figure that grows as a power of it would be ``aim``; between attempts on both sides if there are."""
    below = max((one for one in made if one.figure <= aim), key=lambda one: one.slope, default=None)
    above = min((one for one in made if one.figure > aim), key=lambda one: one.slope, default=None)
    if above is None:
        assert below is not None
        return below.slope * (min(max(aim / below.figure, 1.5), 8.0) if below.figure else 8.0)
    if below is None:
        return above.slope * min(max(aim / above.figure, 1 / 8), 1 / 1.5)
    if not below.figure:
        return math.sqrt(below.slope * above.slope)
    share = math.log(aim / below.figure) / math.log(above.figure / below.figure)
    return below.slope * (above.slope / below.slope) ** min(max(share, 0.1), 0.9)
