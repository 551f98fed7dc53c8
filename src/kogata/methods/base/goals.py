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
# Passes for a budget of bytes. Three are enough but for files of a few kB, whose size is no smooth function of the slope.
MOST = 6
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
    graph = floor - _file_bytes(survey.empty)  # exporting one takes long, and forms hardly change its size
    aim, made = AIM * limit, list[Attempt]()
    slope = rate_curve.slope_of_bits(survey.parts, 8 * (aim - floor))
    while len(made) < MOST:
        after = run(slope)
        figure = _file_bytes(after.model) + graph
        if graph and NEAR * limit <= figure <= limit:
            figure = size(after.model)
        made.append(Attempt(slope=slope, job=after, figure=figure))
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
        slope = _next_for_drop(made, 0.9 * points)
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

    Between attempts on both sides of the aim it is interpolated. Otherwise the attempt nearest to it tells by which factor the
    predicted bits of the codes are wrong.
    """
    small = max((one for one in made if one.figure <= aim), key=lambda one: one.figure, default=None)
    large = min((one for one in made if one.figure > aim), key=lambda one: one.figure, default=None)
    if small is not None and large is not None:
        return _between(small, large, aim, floor)
    near = small or large or made[0]
    factor = max(near.figure - floor, 1.0) / max(rate_curve.bits(survey.parts, near.slope), 1.0)
    return rate_curve.slope_of_bits(survey.parts, (aim - floor) / factor)


def _next_for_drop(made: Sequence[Attempt], aim: float) -> float:
    """The slope at which ``aim`` points are to be expected to be lost, as a power law; between attempts on both sides."""
    below = max((one for one in made if one.figure <= aim), key=lambda one: one.slope, default=None)
    above = min((one for one in made if one.figure > aim), key=lambda one: one.slope, default=None)
    if above is None:
        last = below or made[-1]
        return last.slope * (min(max(aim / last.figure, 1.5), 8.0) if last.figure else 8.0)
    if below is None:
        return above.slope * min(max(aim / above.figure, 1 / 8), 1 / 1.5)
    return _between(below, above, aim, 0) if below.figure else math.sqrt(below.slope * above.slope)


def _between(one: Attempt, other: Attempt, aim: float, floor: int) -> float:
    """The slope between those of two attempts at which the figure is ``aim``; what is above ``floor`` is a power of it."""
    low, high = (math.log(max(each.figure - floor, 1e-9)) for each in (one, other))
    share = (math.log(max(aim - floor, 1e-9)) - low) / (high - low) if high != low else 0.5
    return one.slope * (other.slope / one.slope) ** min(max(share, 0.05), 0.95)
