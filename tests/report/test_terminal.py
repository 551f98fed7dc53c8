"""The terminal report: the numbers that must be there, at every width, in a pipe, without Unicode."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from kogata.report.data import Latency, Report
from kogata.report.terminal import LIMIT, render


def text_of(report: Report, width: int) -> str:
    stream = io.StringIO()
    render(report, Console(file=stream, width=width))
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", ["lenet", "bare", "empty", "deep", "slight", "hostile"])
def test_no_line_is_wider_than_the_terminal(name: str, width: int, request: pytest.FixtureRequest) -> None:
    lines = text_of(request.getfixturevalue(name), width).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert not any("\N{HORIZONTAL ELLIPSIS}" in line for line in lines)  # nothing was cut


def test_a_student_stands_beside_its_teacher(lenet: Report) -> None:
    headings = text_of(replace(lenet, names=("teacher", "student")), 80)
    assert "teacher" in headings
    assert "student" in headings


@pytest.mark.parametrize("width", [80, 120])
def test_the_numbers_are_there(lenet: Report, width: int) -> None:
    text = text_of(lenet, width)
    for wanted in ("1,724,892", f"{lenet.compressed.bytes:,}", "38.0× smaller (α)", "97.4 % saved (β)"):
        assert wanted in text
    for wanted in ("99.17", "99.08", "−0.09 points", "0.462", "0.241", "1.91× faster (δ)", "onnxruntime"):
        assert wanted in text
    for layer in lenet.layers:
        (line,) = [line for line in text.splitlines() if line.strip().startswith(layer.site)]
        assert f"{layer.parameters:,}" in line
        if width >= 100:  # in 80 columns the names of forms need the room
            assert f"{8 * layer.bytes / (layer.dense_bytes // 4):.3g}" in line
    assert text.count("masked(codebook)") == len(lenet.layers)
    assert "1.60 MB → 34.8 kB" in text
    assert "0.212 → 0.118" in text
    assert "−0.0002" in text
    for part, count in lenet.rest_bytes.items():
        assert f"{count:,}" in next(line for line in text.splitlines() if line.strip().startswith(part))
    for step in ("prune", "recover", "share"):
        assert step in text
    assert "157" in text  # seconds of all steps
    assert "fc2.bias left dense" in text
    assert lenet.missed[0] in text


@pytest.mark.parametrize("delta", [0.96, 1.0, 1.04])
def test_no_speed_up_is_claimed_below_five_percent(lenet: Report, delta: float) -> None:
    text = text_of(replace(lenet, delta=delta), 80)
    assert "no faster in this engine" in text
    assert "× faster" not in text


def test_slower_is_said_with_its_number(lenet: Report) -> None:
    slow = Latency(p50=1.478, p90=1.6, minimum=1.4, runs=100)
    slower = replace(lenet, compressed=replace(lenet.compressed, latency_ms=slow), delta=0.3125)
    text = text_of(slower, 80)
    assert "3.20× slower (δ 0.312×)" in text
    assert "faster" not in text


@pytest.mark.parametrize("width", [80, 120])
def test_a_disturbed_measurement_is_marked(lenet: Report, width: int) -> None:
    assert "noisy" not in text_of(lenet, width)
    latency = Latency(p50=0.9, p90=2.0, minimum=0.3, runs=100)
    text = text_of(replace(lenet, compressed=replace(lenet.compressed, latency_ms=latency)), width)
    assert "0.900, noisy" in text
    assert "(compressed 3.00×; expected below 1.5×)" in " ".join(text.split())
    assert max(map(cell_len, text.splitlines())) <= width


def test_what_was_not_measured_is_said(bare: Report) -> None:
    text = text_of(bare, 80)
    assert text.count("not measured") == 2
    assert "no engine" in text
    assert "None" not in text
    assert "nan" not in text


def test_many_layers_are_summed(deep: Report) -> None:
    text = text_of(deep, 120)
    assert text.count("masked(codebook)") == LIMIT
    assert f"others ({100 - LIMIT})" in text
    assert f"{sum(layer.parameters for layer in deep.layers):,}" in text


def test_targets_that_were_met_are_said_met(lenet: Report) -> None:
    assert "all met: size 60kB, drop 0.05pt" in text_of(replace(lenet, missed=()), 80)
    assert "all met" not in text_of(lenet, 80)


def test_a_pipe_gets_no_escape_sequence(hostile: Report) -> None:
    assert "\x1b" not in text_of(hostile, 80)


def test_names_cannot_command_the_terminal(hostile: Report) -> None:
    stream = io.StringIO()
    render(hostile, Console(file=stream, width=120, force_terminal=True, color_system="truecolor"))
    text = stream.getvalue()
    assert "\x1b[" in text  # styles are on
    assert "\x1b]0;" not in text  # and the note that would set the window's title is shown instead
    assert "\x07" not in text
    assert "[red]markup[/red]" in text
    assert "[bold]not markup[/bold]" in text


def test_a_stream_without_unicode_is_no_obstacle(lenet: Report) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    render(replace(lenet, title="小型"), Console(file=stream, width=80))
    stream.seek(0)
    text = stream.read()
    assert "38.0x smaller (alpha)" in text
    assert "1.60 MB -> 34.8 kB" in text
    assert "??" in text
