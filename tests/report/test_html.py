"""The page as text: self-contained, escaped, whole or absent."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from kogata.errors import DataError
from kogata.report.charts import LABEL, SHADES, charts
from kogata.report.data import Latency, Layer, Report
from kogata.report.html import write

ALL = ["lenet", "bare", "empty", "deep", "slight", "hostile"]


class Tags(HTMLParser):
    """Every element with its attributes, and the text outside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.raw = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.raw = tag in ("script", "style")
        self.text += " "

    def handle_endtag(self, tag: str) -> None:
        self.raw = False
        self.text += " "

    def handle_data(self, data: str) -> None:
        if not self.raw:
            self.text += data


def page_of(report: Report, folder: Path) -> str:
    """The page without plotly's own code, which must be in it once."""
    path = folder / "report.html"
    write(report, path)
    html = path.read_text(encoding="utf-8")
    assert html.count(get_plotlyjs()) == 1
    return html.replace(get_plotlyjs(), "")


@pytest.mark.parametrize("name", ALL)
def test_the_page_loads_nothing(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    html = page_of(request.getfixturevalue(name), tmp_path)
    tags = Tags(html)
    for tag, attributes in tags.elements:
        assert not {"src", "href", "srcset", "data", "action", "poster"} & attributes.keys(), (tag, attributes)
        assert tag not in ("link", "iframe", "object", "embed", "base", "img", "a")
    assert not re.search(r"url\(|@import|https?://", html)
    (policy,) = [a["content"] for _, a in tags.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert "default-src 'none'" in policy


def test_hostile_names_stay_text(hostile: Report, tmp_path: Path) -> None:
    html = page_of(hostile, tmp_path)
    tags = Tags(html)
    assert [tag for tag, _ in tags.elements].count("script") == 3
    assert not any(key.startswith("on") for _, attributes in tags.elements for key in attributes)
    assert "<svg" not in html
    assert tags.text.count("<script>console.error('pwned')</script>") >= 5  # title, site, note, target, missed
    assert "[bold]not markup[/bold]" in tags.text


@pytest.mark.parametrize("name", ALL)
def test_tables_and_charts_are_accessible(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    report: Report = request.getfixturevalue(name)
    elements = Tags(page_of(report, tmp_path)).elements
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in elements if tag == "th")
    drawn = {a["id"]: a for _, a in elements if (a.get("id") or "").startswith("chart-")}
    assert drawn.keys() == charts(report).keys()  # each chart has its place, and no place stays empty
    assert all(a["role"] == "img" and a["aria-label"] for a in drawn.values())


def test_the_numbers_are_there(lenet: Report, tmp_path: Path) -> None:
    text = " ".join(Tags(page_of(lenet, tmp_path)).text.split())
    for wanted in ("1.72 MB", "45.4 kB", "38.0× smaller", "97.4 %", "1.91× faster", "−0.09 points"):
        assert wanted in text
    for layer in lenet.layers:
        assert f"{layer.site} {layer.form} {layer.parameters:,} {layer.dense_bytes:,} {layer.bytes:,}" in text
    for part, count in lenet.rest_bytes.items():
        assert f"{part} {count:,}" in text
    coded = sum(plane.bytes for layer in lenet.layers for plane in layer.planes if plane.name == "index")
    packed = sum(plane.packed_bytes for layer in lenet.layers for plane in layer.planes if plane.name == "index")
    entropy = sum(plane.entropy_bytes for layer in lenet.layers for plane in layer.planes if plane.name == "index")
    assert f"{coded:,} {packed:,} {entropy:,.0f}" in text
    for wanted in (*lenet.notes, *lenet.missed, lenet.command, "avx512_vnni", "2.13.0", "ratio 0.92, criterion fisher"):
        assert wanted in text


def test_a_student_stands_beside_its_teacher(lenet: Report, tmp_path: Path) -> None:
    text = " ".join(Tags(page_of(replace(lenet, names=("teacher", "student")), tmp_path)).text.split())
    assert "bytes of the teacher file over bytes of the student file" in text
    assert "Student minus teacher" in text
    assert "Compressed minus dense" not in text


def test_no_speed_up_is_claimed_below_five_percent(lenet: Report, tmp_path: Path) -> None:
    text = Tags(page_of(replace(lenet, delta=1.0), tmp_path)).text
    assert "no faster in this engine" in text
    assert "δ = 1.00×" in text
    assert "× faster" not in text


def test_slower_is_said_with_its_number(lenet: Report, tmp_path: Path) -> None:
    slow = Latency(p50=1.478, p90=1.6, minimum=1.4, runs=100)
    slower = replace(lenet, compressed=replace(lenet.compressed, latency_ms=slow), delta=0.3125)
    text = " ".join(Tags(page_of(slower, tmp_path)).text.split())
    assert "It is 3.20× slower : one sample" in text.replace("slower:", "slower :")
    assert "faster" not in text.replace("further left is faster", "").replace("Further left is faster", "")


def test_a_disturbed_measurement_is_marked(lenet: Report, tmp_path: Path) -> None:
    assert "noisy" not in Tags(page_of(lenet, tmp_path)).text
    busy = replace(lenet, dense=replace(lenet.dense, latency_ms=Latency(p50=0.9, p90=2.0, minimum=0.3, runs=100)))
    text = " ".join(Tags(page_of(busy, tmp_path)).text.split())
    assert "0.900, noisy" in text
    assert "noisy: the median time is far above the fastest one (dense 3.00×; expected below 1.5×)" in text
    assert "Noisy: see the notes." in text


def test_nothing_known_is_a_dash(bare: Report, tmp_path: Path) -> None:
    text = Tags(page_of(bare, tmp_path)).text
    assert "\N{EN DASH}" in text
    assert not re.search(r"\bNone\b|\bnan\b", text)
    assert charts(bare).keys() == {"chart-planes", "chart-dense", "chart-entropy"}


def test_numbers_that_json_cannot_hold_leave_gaps(lenet: Report, tmp_path: Path) -> None:
    layers = tuple(replace(layer, loss=float("nan"), ms=float("inf")) for layer in lenet.layers)
    score = replace(lenet.compressed, score=float("nan"))
    html = page_of(replace(lenet, layers=layers, compressed=score), tmp_path)
    (block,) = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', html)
    figures = json.loads(block, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert "chart-bytes" not in figures
    assert figures["chart-time"]["data"][1]["x"] == [None] * 4


def test_every_byte_of_the_file_is_drawn(lenet: Report) -> None:
    drawn = sum(sum(trace["x"]) for trace in charts(lenet)["chart-planes"]["data"])
    assert drawn == lenet.compressed.bytes


def test_every_byte_of_a_deep_file_is_drawn_and_the_sum_may_leave_the_scale(deep: Report) -> None:
    figure = charts(deep)["chart-planes"]
    assert sum(sum(trace["x"]) for trace in figure["data"]) == deep.compressed.bytes
    assert len(figure["layout"]["yaxis"]["ticktext"]) == 22  # 20 layers, the others, the rest of the file
    assert len(set(figure["layout"]["yaxis"]["ticktext"])) == 22
    assert max(map(len, figure["layout"]["yaxis"]["ticktext"])) <= LABEL
    largest = max(layer.bytes for layer in deep.layers)
    assert largest < figure["layout"]["xaxis"]["range"][1] < 2 * largest
    assert "off the scale" in figure["layout"]["annotations"][0]["text"]


def test_planes_past_the_shades_are_summed(lenet: Report) -> None:
    first: Layer = lenet.layers[0]
    planes = tuple(replace(first.planes[0], name=f"plane {i}", bytes=10 + i) for i in range(12))
    one = replace(first, planes=planes, bytes=sum(plane.bytes for plane in planes) + 5)
    data = charts(replace(lenet, layers=(one,), rest_bytes={}))["chart-planes"]["data"]
    assert [trace["name"] for trace in data][-1] == "other planes"
    assert len(data) == SHADES + 1
    assert sum(trace["x"][0] for trace in data) == one.bytes  # with the five that are in no plane


def test_a_failed_write_leaves_what_was_there(lenet: Report, tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(DataError, match="cannot write"):
        write(lenet, tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]

    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write"):
        write(lenet, tmp_path / "file" / "report.html")


@pytest.mark.parametrize("after", [1_700_000, 1_200_000, 400_000, 90_000, 2_000, 3])
def test_the_axis_of_bytes_has_ticks_that_fit(lenet: Report, after: int) -> None:
    axis = charts(replace(lenet, compressed=replace(lenet.compressed, bytes=after)))["chart-bytes"]["layout"]["xaxis"]
    low, high = axis["range"]
    assert 2 <= len(axis["tickvals"]) <= 12
    assert all(10**low <= tick <= 10**high for tick in axis["tickvals"])
    units = {"B": 1, "kB": 1e3, "MB": 1e6}
    for tick, text in zip(axis["tickvals"], axis["ticktext"], strict=True):
        ((amount, unit),) = re.findall(r"^(\d+)(\w+)$", text)
        assert int(amount) * units[unit] == tick


def test_the_same_report_gives_the_same_page(lenet: Report, tmp_path: Path) -> None:
    write(lenet, tmp_path / "a.html")
    write(lenet, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_steps_that_train_are_told_apart(lenet: Report) -> None:
    first = lenet.steps[1]
    again = replace(first, name="recover again")
    assert [trace["showlegend"] for trace in charts(lenet)["chart-training-loss"]["data"]] == [False]
    data = charts(replace(lenet, steps=(first, again)))["chart-training-loss"]["data"]
    assert [trace["showlegend"] for trace in data] == [True, True]
    assert [trace["x"] for trace in data] == [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_and_bars_stand_out_in_both_schemes(lenet: Report, tmp_path: Path) -> None:
    blocks = re.findall(r":root \{(.*?)\}", page_of(lenet, tmp_path), flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6});", block))

        def contrast(front: str, back: str, colours: dict[str, str] = colours) -> float:
            low, high = sorted((luminance(colours[front]), luminance(colours[back])))
            return (high + 0.05) / (low + 0.05)

        for front in ("ink", "muted", "accent"):
            assert min(contrast(front, "page"), contrast(front, "card")) >= 4.5, front
        assert min(contrast(front, "alarm-page") for front in ("ink", "muted", "alarm")) >= 4.5
        assert min(contrast("dense", "card"), contrast("accent", "card"), contrast("plane-0", "card")) >= 3
        assert {f"plane-{shade}" for shade in range(SHADES)} < colours.keys()
