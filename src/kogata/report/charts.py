"""The charts of the HTML page as plain plotly figures.

Colours are names of CSS variables (``--accent``), which the page replaces by the values of its light or dark scheme. Text is
escaped, because plotly interprets a few HTML tags in labels.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from kogata.report.data import Report
from kogata.report.rows import TableRow, layer_rows
from kogata.report.words import number, score, score_decimals, size

Figure = dict[str, Any]  # plotly's own schema: {"data": [...], "layout": {...}}
Values = Sequence[float | None]

LIMIT = 20  # number of layers drawn; the others are summed into one bar
SHADES = 5  # number of plane names with a colour of their own
LABEL = 24  # longest label in characters, which leaves room for the bars on a phone
OTHER = "other planes"
REST = "rest of the file"
BYTES = {"tickformat": "~s", "ticksuffix": "B"}  # shown as 10kB, 1.5MB


def charts(report: Report) -> dict[str, Figure]:
    """The charts for which the report has numbers, by the id of their element in the page."""
    rows = layer_rows(report, LIMIT)
    found = {
        "chart-bytes": _score_against_bytes(report),
        "chart-ms": _score_against_ms(report),
        "chart-planes": _planes(report, rows),
        "chart-dense": _dense(rows),
        "chart-time": _time(rows),
        "chart-loss": _loss(rows),
        "chart-entropy": _entropy(report),
        "chart-training-loss": _training(report, score_curve=False),
        "chart-training-score": _training(report, score_curve=True),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def _score_against_bytes(report: Report) -> Figure | None:
    exponents = [math.log10(side.bytes) for side in (report.dense, report.compressed)]
    pad = max(0.45 * abs(exponents[0] - exponents[1]), 0.25)
    low, high = min(exponents) - pad, max(exponents) + pad
    ticks = _round_numbers(low, high)
    axis = {
        "type": "log",
        "range": [low, high],
        "title": {"text": "bytes, log scale"},
        "tickangle": 0,
        "tickvals": list(ticks),
        "ticktext": list(ticks.values()),
    }
    labels = [size(side.bytes) for side in (report.dense, report.compressed)]
    return _picture(report, axis, [report.dense.bytes, report.compressed.bytes], exponents, labels)


def _round_numbers(low: float, high: float) -> dict[int, str]:
    """Tick values in bytes between two powers of ten, few enough for a phone, and their labels such as 20kB."""
    digits = (1,) if high - low > 2 else (1, 3) if high - low > 1 else (1, 2, 5)
    found = [digit * 10**power for power in range(max(0, math.floor(low)), math.ceil(high)) for digit in digits]
    parts = {value: size(value).split() for value in found if low <= math.log10(value) <= high}
    return {value: f"{float(amount):g}{unit}" for value, (amount, unit) in parts.items()}


def _score_against_ms(report: Report) -> Figure | None:
    if report.dense.latency_ms is None or report.compressed.latency_ms is None:
        return None
    values = [report.dense.latency_ms.p50, report.compressed.latency_ms.p50]
    axis = {"range": [0, 1.3 * max(values)], "nticks": 6, "title": {"text": "milliseconds"}}
    return _picture(report, axis, values, values, [f"{number(value)} ms" for value in values])


def _picture(report: Report, axis: Figure, x: list[Any], arrow_x: list[float], labels: list[str]) -> Figure | None:
    """The two models as points joined by an arrow; None without two scores. ``arrow_x`` is x in units of the axis (log10)."""
    scores = [report.dense.score, report.compressed.score]
    if any(value is None or not math.isfinite(value) for value in scores):
        return None
    y = [value for value in scores if value is not None]
    # the axis spans at least 2 % of the score, so that small differences look small
    half = max(1.1 * abs(y[0] - y[1]), 0.01 * max(map(abs, y)), 1e-6)
    middle = sum(y) / 2
    decimals = score_decimals(report)
    trace = {
        "type": "scatter",
        "mode": "markers+text",
        "x": x,
        "y": y,
        "text": [
            f"<b>{name}</b><br>{label} · {score(value, decimals)}"
            for name, label, value in zip(report.names, labels, y, strict=True)
        ],
        "textposition": ["top center", "bottom center"] if y[0] >= y[1] else ["bottom center", "top center"],
        "marker": {"size": [13, 15], "color": ["--dense", "--accent"], "opacity": 1},
        "hoverinfo": "text",
        "cliponaxis": False,
    }
    arrow = {
        "x": arrow_x[1],
        "y": y[1],
        "ax": arrow_x[0],
        "ay": y[0],
        "xref": "x",
        "yref": "y",
        "axref": "x",
        "ayref": "y",
        "showarrow": True,
        "arrowhead": 2,
        "arrowwidth": 1.5,
        "arrowcolor": "--muted",
        "standoff": 11,
        "startstandoff": 10,
    }
    y_axis = {"range": [middle - half, middle + half], "nticks": 5, "title": {"text": "score (higher is better)"}}
    margin = {"l": 64, "r": 12, "t": 12, "b": 48}
    return {"data": [trace], "layout": _layout(300, axis, y_axis) | {"annotations": [arrow], "margin": margin}}


def _planes(report: Report, rows: list[TableRow]) -> Figure | None:
    if not rows and not report.rest_bytes:
        return None
    totals: Counter[str] = Counter()
    for row in rows:
        totals.update(row.planes)
    shaded = [name for name, _ in totals.most_common(SHADES)]
    labels = [row.site for row in rows]
    traces = [
        _bars(name, [row.planes.get(name, 0) for row in rows], labels, size, f"--plane-{shade}")
        for shade, name in enumerate(shaded)
    ]
    if len(totals) > len(shaded):
        values = [sum(count for name, count in row.planes.items() if name not in shaded) for row in rows]
        traces.append(_bars(OTHER, values, labels, size, "--muted"))
    rest = sum(report.rest_bytes.values())
    if rest:
        traces.append({**_bars(REST, [rest], [REST], size, "--dense"), "y": [len(rows)], "showlegend": False})
    layout = _bar_layout(rows, [row.bytes for row in rows], size, more=([REST], [rest]) if rest else ([], []))
    return {"data": traces, "layout": layout | {"barmode": "stack"}}


def _dense(rows: list[TableRow]) -> Figure | None:
    if not rows:
        return None
    values = [row.dense_bytes for row in rows]
    trace = _bars("dense", values, [row.site for row in rows], size, "--dense")
    return {"data": [{**trace, "showlegend": False}], "layout": _bar_layout(rows, values, size)}


def _time(rows: list[TableRow]) -> Figure | None:
    if all(row.dense_ms is None and row.ms is None for row in rows):
        return None
    labels = [row.site for row in rows]
    traces = [
        _bars("dense", [row.dense_ms for row in rows], labels, _milliseconds, "--dense"),
        _bars("compressed", [row.ms for row in rows], labels, _milliseconds, "--accent"),
    ]
    longest = [max(row.dense_ms or 0, row.ms or 0) for row in rows]
    layout = _bar_layout(rows, longest, _milliseconds, height=34)
    return {"data": traces, "layout": layout | {"barmode": "group"}}


def _loss(rows: list[TableRow]) -> Figure | None:
    values = [row.loss for row in rows]
    if all(value is None for value in values):
        return None
    trace = _bars("loss", values, [row.site for row in rows], number, "--accent")
    return {"data": [{**trace, "showlegend": False}], "layout": _bar_layout(rows, values, number)}


def _entropy(report: Report) -> Figure | None:
    coded: Counter[str] = Counter()
    packed: Counter[str] = Counter()
    entropy: defaultdict[str, float] = defaultdict(float)
    for layer in report.layers:
        for plane in layer.planes:
            coded[plane.name] += plane.bytes
            packed[plane.name] += plane.packed_bytes
            entropy[plane.name] += plane.entropy_bytes
    if not coded:
        return None
    names = [name for name, _ in coded.most_common(LIMIT)]
    traces = [
        _bars("packed, no coding", [packed[name] for name in names], names, size, "--plane-4"),
        _bars("entropy, static model", [entropy[name] for name in names], names, size, "--dense"),
        _bars("coded in the file", [coded[name] for name in names], names, size, "--accent"),
    ]
    layout = _bar_layout([], [], size, more=(names, [packed[name] for name in names]), height=46)
    return {"data": traces, "layout": layout | {"barmode": "group"}}


def _training(report: Report, *, score_curve: bool) -> Figure | None:
    """One line per training step, with epochs counted through all steps; None without epochs or scores."""
    traces: list[Figure] = []
    done = 0
    for step in report.steps:
        values = [epoch.score if score_curve else epoch.loss for epoch in step.epochs]
        if any(value is not None for value in values):
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": step.name,
                    "hoverinfo": "x+y",
                    "x": [done + 1 + i for i in range(len(values))],
                    "y": _finite(values),
                    "line": {"color": f"--plane-{len(traces) % SHADES}", "width": 2},
                    "marker": {"color": f"--plane-{len(traces) % SHADES}", "size": 6},
                }
            )
        done += len(step.epochs)
    if not traces:
        return None
    for trace in traces:
        trace["showlegend"] = len({trace["name"] for trace in traces}) > 1
    x_axis = {"title": {"text": "epoch"}, "nticks": 8, "tickformat": "d"}
    margin = {"l": 64, "r": 12, "t": 12, "b": 44}
    return {"data": traces, "layout": _layout(240, x_axis, {"nticks": 5}) | {"margin": margin}}


def _literal(text: str) -> str:
    """Escape text for plotly, which interprets <b>, <a> and a few other tags, but does not decode &quot;."""
    return escape(text, quote=False)


def _milliseconds(value: float | None) -> str:
    return f"{number(value)} ms"


def _bars(name: str, values: Values, labels: list[str], text: Callable[[Any], str], colour: str) -> Figure:
    """Horizontal bars, one for each label; hovering shows the whole label. The page draws the legend, plotly's is too wide."""
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "showlegend": True,
        "x": _finite(values),
        "y": list(range(len(values))),  # positions, not names, so that two labels cut to the same text stay two bars
        "hovertext": [_literal(f"{label}, {name}: {text(value)}") for label, value in zip(labels, values, strict=True)],
        "hoverinfo": "text",
        "marker": {"color": colour, "line": {"width": 1, "color": "--card"}},
    }


def _bar_layout(
    rows: list[TableRow],
    lengths: Values,
    text: Callable[[Any], str],
    *,
    more: tuple[list[str], Values] = ([], []),
    height: int = 26,
) -> Figure:
    """One bar for each row, then one for each of ``more``. The sum of many layers may exceed the axis, and is marked then."""
    names = _short(rows) + more[0]
    lengths = [*lengths, *more[1]]
    x_axis: Figure = {"nticks": 3, "rangemode": "tozero", "tickangle": 0}
    if text is size:
        x_axis |= BYTES
    notes: list[Figure] = []
    if rows and rows[-1].layers > 1:
        others = lengths.pop(len(rows) - 1)
        longest = max((abs(value) for value in _finite(lengths) if value), default=0.0)
        if others is not None and abs(others) > 2 * longest > 0:
            x_axis["range"] = [min(0.0, *(value or 0.0 for value in lengths)), 1.25 * longest]
            notes.append(_off_the_scale(len(rows) - 1, text(others)))
    y_axis = {
        "range": [len(names) - 0.5, -0.5],
        "tickvals": list(range(len(names))),
        "ticktext": [_literal(name) for name in names],
        "automargin": True,
        "showgrid": False,
        "zeroline": False,
    }
    layout = _layout(height * len(names) + 44, x_axis, y_axis)
    return layout | {"annotations": notes, "margin": {"l": 8, "r": 16, "t": 8, "b": 30}, "bargap": 0.3}


def _off_the_scale(position: int, text: str) -> Figure:
    return {
        "xref": "paper",
        "x": 1,
        "xanchor": "right",
        "y": position,
        "text": f"{text}, off the scale →",
        "showarrow": False,
        "bgcolor": "--card",
        "font": {"color": "--ink"},
    }


def _short(rows: list[TableRow]) -> list[str]:
    """Shortened site names: common last parts are dropped, then common first parts, then names are cut at the front."""
    parts = [row.site.split(".") for row in rows if row.layers == 1]

    def too_long() -> bool:
        return len(parts) > 1 and min(map(len, parts)) > 1 and max(len(".".join(part)) for part in parts) > LABEL

    while too_long() and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    while too_long() and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    names = [".".join(part) for part in parts] + [row.site for row in rows if row.layers > 1]
    return [name if len(name) <= LABEL else "…" + name[1 - LABEL :] for name in names]


def _layout(height: int, x_axis: Figure, y_axis: Figure) -> Figure:
    axis = {"gridcolor": "--line", "zerolinecolor": "--line", "linecolor": "--line", "fixedrange": True}
    return {
        "height": height,
        "showlegend": False,
        "dragmode": False,
        "paper_bgcolor": "--card",
        "plot_bgcolor": "--card",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "--ink"},
        "hoverlabel": {"bgcolor": "--card", "bordercolor": "--line", "font": {"color": "--ink"}},
        "xaxis": axis | x_axis,
        "yaxis": axis | y_axis,
    }


def _finite(values: Values) -> list[float | None]:
    """Replace values that JSON cannot hold by None, which leaves a gap."""
    return [value if value is not None and math.isfinite(value) else None for value in values]
