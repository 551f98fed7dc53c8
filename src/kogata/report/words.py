"""The wording of numbers in reports, shared by the terminal and the HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from kogata.report.data import Report

NOTHING = "–"
FASTER = 1.05  # ratio of medians below which no speed-up is claimed: two runs of one model differ as much
MINUS = "−"


def number(value: float | None, *, signed: bool = False) -> str:
    """Three significant digits with grouped thousands, without trailing zeros below 0.1; "–" for unknown values.

    >>> number(1234.5), number(0.12345), number(None)
    ('1,234', '0.123', '–')
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    sign = "+" if signed else ""
    if abs(value) >= 99.95:
        text = f"{value:{sign},.0f}"
    else:
        text = f"{value:{sign}#.3g}" if abs(value) >= 0.1 else f"{value:{sign}.3g}"
    return text.replace("-", MINUS, 1) if value < 0 else text


def change(measure: str, loss: float | None, increase: float | None, error: float | None) -> str:
    """What a layer's change did, in the ``measure`` that the report shows: loss, predicted loss, or error of its weight.

    >>> change("loss", None, None, 0.01), change("predicted loss", None, 2e-4, 0.01), change("error", None, None, 0.01)
    ('not measured', '+0.0002', '0.01')
    """
    if measure == "loss":
        return "not measured" if loss is None and error is not None else number(loss, signed=True)
    return number(increase, signed=True) if measure == "predicted loss" else number(error)


def size(value: float) -> str:
    """Bytes in decimal units with three significant digits.

    >>> size(612), size(18_432), size(1_720_000)
    ('612 B', '18.4 kB', '1.72 MB')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= 0.9995 * scale:
            return f"{number(value / scale)} {unit}"
    return f"{value:,.0f} B"


def share(part: float, whole: float) -> str:
    """``part`` in percent of ``whole``; "–" when the whole is 0."""
    return f"{100 * part / whole:.1f} %" if whole else NOTHING


def rate(value: float) -> str:
    """A ratio to three digits with a times sign. It is truncated, not rounded, so that it never overstates.

    >>> rate(93.69)
    '93.6×'
    """
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    cut = math.floor(value * 10**digits + 1e-9)  # 1e-9 because in floating point 100 · 4.1 is 409.99…
    return f"{cut / 10**digits:,.{digits}f}×"


def score_decimals(report: Report) -> int:
    """Number of decimals for both scores: four for fractions up to 1, two for larger scores such as percent."""
    largest = max(abs(side.score or 0) for side in (report.dense, report.compressed))
    return 4 if largest <= 1 else 2


def score(value: float | None, decimals: int) -> str:
    """A score as the task returned it; "–" for an unknown one."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:.{decimals}f}".replace("-", MINUS)


def score_change(report: Report) -> str:
    """Compressed minus dense score in the unit of the score, which is called points if above 1."""
    if report.dense.score is None or report.compressed.score is None:
        return "not measured"
    decimals = score_decimals(report)
    change = report.compressed.score - report.dense.score
    if not math.isfinite(change):
        return "not a number"
    if change == 0:
        return "unchanged"
    text = f"{change:+.{decimals}f}".replace("-", MINUS)
    if round(change, decimals) == 0:
        text = number(change, signed=True)
    return text + (" points" if decimals == 2 else "")


def size_change(report: Report) -> str:
    """The change of size in words: "93.6× smaller" or "no smaller"."""
    return f"{rate(report.alpha)} smaller" if report.alpha >= 1.005 else "no smaller"


def speed_change(report: Report) -> str:
    """The change of speed in words; a speed-up is claimed only from 1.05×."""
    if report.delta is None:
        return "not measured"
    if report.delta >= FASTER:
        return f"{rate(report.delta)} faster"
    return "no faster in this engine"


def settings(values: Mapping[str, Any]) -> str:
    """The settings of a step in one line, without unset ones and without the method's name, which has its own column."""
    said = {key.replace("_", " "): value for key, value in values.items() if key != "method" and value is not None}
    parts = [f"{key} {_setting(value)}" for key, value in said.items()]
    return ", ".join(parts) or NOTHING


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({settings(cast('Mapping[str, Any]', value))})"
    if isinstance(value, list | tuple):
        return " ".join(map(str, cast("list[Any]", value))) or NOTHING
    return f"{value:.4g}" if isinstance(value, float) else str(value)
