"""How a report says its numbers: one wording, shared by the terminal and the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from kogata.report.data import Report

NOTHING = "–"
FASTER = 1.05  # below this ratio of medians a speed-up is within what two runs of one model differ by: claim none
MINUS = "−"


def number(value: float | None, *, signed: bool = False) -> str:
    """Three significant digits, thousands grouped, no zeros at the end of small ones; "–" for what is not known."""
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


def loss_or_error(loss: float | None, error: float | None, *, explained: bool) -> str:
    """What a layer's change did: to the loss where that was measured, or as error of its weight.

    >>> loss_or_error(None, 0.01, explained=True)
    'not measured'
    """
    if not explained:
        return number(error)
    return "not measured" if loss is None and error is not None else number(loss, signed=True)


def size(value: float) -> str:
    """Bytes in decimal units, three significant digits: 612 B, 18.4 kB, 1.72 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= 0.9995 * scale:
            return f"{number(value / scale)} {unit}"
    return f"{value:,.0f} B"


def share(part: float, whole: float) -> str:
    """A part of a whole in percent."""
    return f"{100 * part / whole:.1f} %" if whole else NOTHING


def rate(value: float) -> str:
    """A ratio to three digits with its sign, cut and not rounded so that it never overstates: 93.6×."""
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    cut = math.floor(value * 10**digits + 1e-9)  # 4.1 is 409.99… hundredths to a float
    return f"{cut / 10**digits:,.{digits}f}×"


def score_decimals(report: Report) -> int:
    """Fractions get four decimals, percents and the like two, so that both sides show the same digits."""
    largest = max(abs(side.score or 0) for side in (report.dense, report.compressed))
    return 4 if largest <= 1 else 2


def score(value: float | None, decimals: int) -> str:
    """A score as the task returned it."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:.{decimals}f}".replace("-", MINUS)


def score_change(report: Report) -> str:
    """Compressed minus dense in the score's own unit; called points where the score is no fraction."""
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
    """The size in words: "93.6× smaller", or that it is no smaller."""
    return f"{rate(report.alpha)} smaller" if report.alpha >= 1.005 else "no smaller"


def speed_change(report: Report) -> str:
    """The speed in words; a speed-up is claimed only from 1.05× on."""
    if report.delta is None:
        return "not measured"
    if report.delta >= FASTER:
        return f"{rate(report.delta)} faster"
    return "no faster in this engine"


def settings(values: Mapping[str, Any]) -> str:
    """The settings of a step in one line: what is not set is left out, and so is the method's name beside its column."""
    said = {key.replace("_", " "): value for key, value in values.items() if key != "method" and value is not None}
    parts = [f"{key} {_setting(value)}" for key, value in said.items()]
    return ", ".join(parts) or NOTHING


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({settings(cast('Mapping[str, Any]', value))})"
    if isinstance(value, list | tuple):
        return " ".join(map(str, cast("list[Any]", value))) or NOTHING
    return f"{value:.4g}" if isinstance(value, float) else str(value)
