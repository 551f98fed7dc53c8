"""The wording of numbers: it never overstates, and never claims a speed-up that was not measured."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kogata.report.data import Report
from kogata.report.words import (
    loss_rate,
    number,
    rate,
    score,
    score_change,
    score_decimals,
    share,
    size,
    size_change,
    speed_change,
)

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


@pytest.mark.parametrize(
    ("delta", "said"),
    [
        (0.0123, "81.4× slower"), (0.2, "5.00× slower"), (0.95, "1.06× slower"), (0.953, "no faster in this engine"),
        (1.0, "no faster in this engine"), (1.049, "no faster in this engine"), (1.0501, "1.05× faster"),
        (40.0, "40.0× faster"), (None, "not measured"),
    ],
)  # fmt: skip
def test_a_difference_of_speed_is_claimed_from_five_percent_on(delta: float | None, said: str) -> None:
    assert speed_change(delta, delta) == said


@pytest.mark.parametrize(("delta", "fastest"), [(3.35, 0.94), (1.2, 1.0), (0.5, 1.0), (0.9, 2.0)])
def test_a_difference_that_the_fastest_passes_do_not_show_is_not_claimed(delta: float, fastest: float) -> None:
    assert speed_change(delta, fastest) == "too noisy to tell"


@given(st.floats(0.001, 1000))
def test_a_gain_is_never_overstated_and_a_loss_never_understated(ratio: float) -> None:
    gain, loss = (float(text(ratio).replace(",", "").rstrip("×")) for text in (rate, loss_rate))
    assert 0.99 * ratio <= gain <= ratio * (1 + 1e-6)
    assert ratio * (1 - 1e-6) <= loss <= 1.0101 * ratio


def test_no_smaller_is_said(lenet: Report) -> None:
    assert size_change(lenet) == "38.0× smaller"
    assert size_change(replace(lenet, compressed=lenet.dense)) == "no smaller"
    larger = replace(lenet.compressed, bytes=2 * lenet.dense.bytes)
    assert size_change(replace(lenet, compressed=larger)) == "2.00× larger"
