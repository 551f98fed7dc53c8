"""The wording of numbers in reports, shared by the terminal and the HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from kogata.report.data import NOISY, Latency, Report

NOTHING = "–"
FASTER = 1.05  # ratio of times below which no difference is claimed: two runs of one model differ as much
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
    """A ratio to three digits with a times sign. It is truncated, not rounded, so that a gain is never overstated.

    >>> rate(93.69)
    '93.6×'
    """
    digits = _digits(value)
    cut = math.floor(value * 10**digits + 1e-9)  # 1e-9 because in floating point 100 · 4.1 is 409.99…
    return f"{cut / 10**digits:,.{digits}f}×"


def loss_rate(value: float) -> str:
    """The same, rounded up, so that a loss is never understated.

    >>> loss_rate(3.201)
    '3.21×'
    """
    digits = _digits(value)
    return f"{math.ceil(value * 10**digits - 1e-9) / 10**digits:,.{digits}f}×"


def _digits(value: float) -> int:
    """How many decimals show three digits of a ratio."""
    return max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0


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
    """The change of size in words: "93.6× smaller", "no smaller" or "1.20× larger"."""
    if report.alpha >= 1.005:
        return f"{rate(report.alpha)} smaller"
    return "no smaller" if report.alpha > 1 / 1.005 else f"{loss_rate(1 / report.alpha)} larger"


def speed_change(delta: float | None, fastest: float | None) -> str:
    """A speed-up δ in words. A difference is claimed from 1.05× on, either way, and only if the fastest passes show it too.

    ``fastest`` is the ratio of the fastest times of the two models, which other work on the machine disturbs least.

    >>> speed_change(1.914, 1.9), speed_change(1.02, 1.0), speed_change(0.3125, 0.3), speed_change(3.35, 0.94)
    ('1.91× faster', 'no faster in this engine', '3.20× slower', 'too noisy to tell')
    """
    if delta is None or fastest is None:
        return "not measured"
    if 1 / FASTER < delta < FASTER:
        return "no faster in this engine"
    if not (fastest >= FASTER if delta > 1 else fastest <= 1 / FASTER):
        return "too noisy to tell"
    return f"{rate(delta)} faster" if delta > 1 else f"{loss_rate(1 / delta)} slower"


def speed(report: Report) -> str:
    """The speed-up of a report in words."""
    return speed_change(report.delta, fastest(report.dense.latency_ms, report.compressed.latency_ms))


def fastest(dense: Latency | None, ours: Latency | None) -> float | None:
    """The ratio of the fastest times of two models; None where one was not measured."""
    return None if dense is None or ours is None else dense.minimum / ours.minimum


def noise(latencies: Mapping[str, Latency | None]) -> str:
    """Which models' times other work on the machine disturbed, and by how much; empty if none.

    >>> noise({"dense": Latency(p50=3.0, p90=4.0, minimum=1.0, runs=100), "compressed": None})[:73]
    'noisy: the median time is far above the fastest one (dense 3.00×; expecte'
    """
    found = [
        f"{name} {rate(latency.p50 / latency.minimum)}"
        for name, latency in latencies.items() if latency is not None and latency.noisy
    ]  # fmt: skip
    if not found:
        return ""
    return (
        f"noisy: the median time is far above the fastest one ({', '.join(found)}; expected below {NOISY}×). Other work "
        "disturbed the measurement; repeat it on an idle machine."
    )


def notes(report: Report) -> tuple[str, ...]:
    """The notes of a report, first among them which times are disturbed."""
    return tuple(filter(None, (noise(report.latencies), *report.notes)))


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
