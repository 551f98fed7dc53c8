"""Targets: absolute or relative limits for the result, and whether the measured result meets them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from kogata.errors import UsageError
from kogata.report.data import Report
from kogata.settings import BYTES, POINTS, amount

Goal = Literal["size", "drop", "latency"]
_FORMS: dict[str, str] = {
    "size": "such as 20kB, 1.5MB, 1/20 or 5% (of the dense file)",
    "drop": "such as 0.5pt (points of the score)",
    "latency": "such as 3ms, 1/2 or 60% (of the dense latency)",
}
_UNITS: Mapping[str, Mapping[str, float]] = {"size": BYTES, "drop": POINTS, "latency": {"ms": 1.0}}


@dataclass(frozen=True, kw_only=True)
class Target:
    """One limit: ``value`` in bytes, points of the score or milliseconds, or relative to the dense model."""

    goal: Goal
    text: str
    value: float
    relative: bool

    def miss(self, report: Report) -> str | None:
        """A sentence on how the report misses the target; None when it meets it."""
        dense, ours = report.dense, report.compressed
        if self.goal == "size":
            found, base, unit = ours.bytes, dense.bytes, "bytes"
        elif self.goal == "drop":
            if dense.score is None or ours.score is None:
                return f"drop: {self.text} was asked for, but no score was measured"
            found, base, unit = dense.score - ours.score, 0.0, "points"
        else:
            if dense.latency_ms is None or ours.latency_ms is None or report.delta is None:
                return f"latency: {self.text} was asked for, but no engine measured it"
            found, base, unit = ours.latency_ms.p50, ours.latency_ms.p50 * report.delta, "ms"  # δ: of the same moments
        limit = self.value * base if self.relative else self.value
        if found <= limit + 1e-9:
            return None
        return f"{self.goal}: {found:,.4g} {unit}, over the limit of {limit:,.4g} ({self.text})"


def parse(wanted: Mapping[str, object]) -> tuple[Target, ...]:
    """Parse targets as a recipe writes them, ``{"size": "1/20", "drop": "0.5pt"}``. Raises UsageError naming the key.

    >>> parse({"size": "20kB"})[0].value
    20000.0
    """
    return tuple(_one(key, str(value).strip()) for key, value in wanted.items())


def check_measurable(targets: Iterable[Target], *, scored: bool, timed: bool) -> None:
    """Raise UsageError, before anything runs, for a target that nothing will be measured for."""
    for target in targets:
        if target.goal == "drop" and not scored:
            raise UsageError(f"drop: {target.text} was asked for, but the task has no evaluate() to measure a score; add one.")
        if target.goal == "latency" and not timed:
            raise UsageError(f"latency: {target.text} was asked for, but no engine is to measure it; name one with --engine.")


def _one(goal: str, text: str) -> Target:
    if goal not in get_args(Goal):
        raise UsageError(f"targets: {goal!r} is none of {', '.join(get_args(Goal))}.")
    found = amount(text, _UNITS[goal])
    if found is not None and not (goal == "drop" and found[1]):
        return Target(goal=goal, text=text, value=found[0], relative=found[1])  # type: ignore[arg-type]
    raise UsageError(f"targets: {goal}: {text!r} cannot be read; write it {_FORMS[goal]}.")
