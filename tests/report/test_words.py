"""The wording of numbers: it never overstates, and never claims a speed-up that was not measured."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kogata.report.data import Latency, Report
from kogata.report.words import number, rate, score, score_change, score_decimals, share, size, size_change, speed_change

UNITS = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}


@given(st.floats(1e-3, 1e6))
def test_a_rate_is_cut_not_rounded(value: float) -> None:
    shown = float(rate(value).rstrip("×").replace(",", ""))
    assert value * 0.99 <= shown <= value * (1 + 1e-8)


@given(st.integers(0, 10**13))
def test_a_size_reads_back_to_three_digits(count: int) -> None:
    text, unit = size(count).split()
    assert float(text.replace(",", "")) * UNITS[unit] == pytest.approx(count, rel=0.006)


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9))
def test_a_number_reads_back_to_three_digits(value: float) -> None:
    text = number(value, signed=True).replace(",", "").replace("\N{MINUS SIGN}", "-")
    assert float(text) == pytest.approx(value, rel=0.006)
    assert text.startswith("-" if value < 0 else "+" if value > 0 else "0")


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_nothing_known_is_a_dash(value: float | None) -> None:
    assert number(value) == "\N{EN DASH}"
    assert score(value, 2) == "\N{EN DASH}"


def test_examples() -> None:
    assert size(18_412) == "18.4 kB"
    assert size(612) == "612 B"
    assert rate(4.1) == "4.10×"
    assert share(1, 0) == "\N{EN DASH}"


def scored(report: Report, before: float | None, after: float | None) -> Report:
    return replace(report, dense=replace(report.dense, score=before), compressed=replace(report.compressed, score=after))


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (99.17, 99.08, "−0.09 points"),
        (0.9917, 0.9908, "−0.0009"),  # a fraction: no "points", which would read as percent
        (-12.5, -12.25, "+0.25 points"),
        (99.17, 99.17, "unchanged"),
        (99.17, 99.168, "−0.002 points"),  # rounds to nothing, and is something
        (99.17, None, "not measured"),
        (99.17, math.nan, "not a number"),
    ],
)
def test_score_change(lenet: Report, before: float, after: float | None, change: str) -> None:
    assert score_change(scored(lenet, before, after)) == change


def test_both_scores_show_the_same_digits(lenet: Report) -> None:
    assert score_decimals(scored(lenet, 0.5, 0.25)) == 4
    assert score_decimals(scored(lenet, 99.0, 0.5)) == 2
    assert score_decimals(scored(lenet, None, None)) == 4


def timed(report: Report, before: float, after: float) -> Report:
    def latency(p50: float) -> Latency:
        return Latency(p50=p50, p90=p50, minimum=p50, runs=1)

    return replace(
        report,
        dense=replace(report.dense, latency_ms=latency(before)),
        compressed=replace(report.compressed, latency_ms=latency(after)),
    )


@pytest.mark.parametrize("delta", [0.2, 0.95, 1.0, 1.049, 1.0501, 1.2, 40.0])
def test_a_speed_up_is_claimed_from_five_percent_on(lenet: Report, delta: float) -> None:
    said = speed_change(timed(lenet, delta, 1.0))
    assert said == (f"{rate(delta)} faster" if delta >= 1.05 else "no faster in this engine")


def test_no_smaller_is_said(lenet: Report) -> None:
    assert size_change(lenet) == "38.0× smaller"
    assert size_change(replace(lenet, compressed=lenet.dense)) == "no smaller"
