"""The page in a real browser: what is drawn, that nothing overflows, and that no error is logged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kogata.report.charts import charts
from kogata.report.data import Report
from kogata.report.html import write
from tests.report import browser

pytestmark = pytest.mark.skipif(browser.find() is None, reason="no Chromium or Chrome is installed")


HEIGHTS = {1280: 900, 390: 844}
POINTS = "Object.fromEntries([...document.querySelectorAll('[id^=chart-]')]" + (
    ".map(chart => [chart.id, chart.querySelectorAll('.point').length]))"
)
# texts of a chart that stick out of its element, where they would be cut
CUT = """[...document.querySelectorAll('[id^=chart-]')].flatMap(chart => {
  const frame = chart.getBoundingClientRect();
  return [...chart.querySelectorAll('text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.width > 0 && (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1);
  }).map(text => chart.id + ': ' + text.textContent);
})"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def pipe() -> Iterator[browser.Pipe]:
    """One browser for all pages; each has a tab of its own."""
    with browser.started() as started:
        yield started


def drawn_points(report: Report) -> dict[str, int]:
    """What must be drawn, counted from the report's figures: a bar or a dot for each number that is not None."""
    return {
        name: sum(value is not None for trace in figure["data"] for value in trace["x"])
        for name, figure in charts(report).items()
    }


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", HEIGHTS)
def test_the_page_renders(lenet: Report, width: int, dark: bool, pipe: browser.Pipe, tmp_path: Path) -> None:
    html = tmp_path / "report.html"
    write(lenet, html)
    with browser.opened(pipe, html, width, HEIGHTS[width], dark) as page:
        points = page.evaluate(POINTS)
        assert points["chart-bytes"] == points["chart-ms"] == 2
        assert {name: points[name] for name in ("chart-dense", "chart-time", "chart-loss")} == {
            "chart-dense": 4,
            "chart-time": 8,
            "chart-loss": 4,
        }
        assert points == drawn_points(lenet)
        assert page.evaluate(OVERFLOW) <= 0
        assert page.evaluate("innerWidth") == width
        assert page.evaluate(CUT) == []
        red = page.evaluate("parseInt(getComputedStyle(document.body).backgroundColor.slice(4))")
        assert (red < 64) == dark
        browser.capture(page, tmp_path / "report.png")
        assert page.errors == []
        assert page.requests == [html.as_uri()]
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["deep", "slight", "bare", "empty", "hostile"])
def test_hard_cases_render_on_a_phone(name: str, request: pytest.FixtureRequest, pipe: browser.Pipe, tmp_path: Path) -> None:
    report: Report = request.getfixturevalue(name)
    html = tmp_path / "report.html"
    write(report, html)
    with browser.opened(pipe, html, 390, 844, dark=False) as page:
        assert page.evaluate(POINTS) == drawn_points(report)
        assert page.evaluate(OVERFLOW) <= 0
        assert page.evaluate(CUT) == []
        assert page.evaluate("document.querySelectorAll('img, a, [onload], main script').length") == 0
        assert page.errors == []
        assert page.requests == [html.as_uri()]


def test_a_chart_shows_a_hostile_name_as_it_is(hostile: Report, pipe: browser.Pipe, tmp_path: Path) -> None:
    html = tmp_path / "report.html"
    write(hostile, html)
    with browser.opened(pipe, html, 1280, 900, dark=False) as page:
        assert hostile.layers[1].site in page.evaluate("document.querySelector('#chart-dense').textContent")


@pytest.mark.parametrize(
    "fault",
    [
        "<script>console.error('a fault')</script>",
        "<script>throw new Error('a fault')</script>",
        "<img src='http://127.0.0.1:9/pixel.png' alt=''>",  # refused by the page's policy, and reported
    ],
)
def test_a_fault_is_seen(lenet: Report, fault: str, pipe: browser.Pipe, tmp_path: Path) -> None:
    html = tmp_path / "report.html"
    write(lenet, html)
    html.write_text(html.read_text(encoding="utf-8").replace("</main>", f"{fault}</main>"), encoding="utf-8")
    with browser.opened(pipe, html, 390, 844, dark=False) as page:
        page.evaluate("1")
        assert page.errors != []


def test_overflow_and_cut_text_are_seen(lenet: Report, pipe: browser.Pipe, tmp_path: Path) -> None:
    html = tmp_path / "report.html"
    write(lenet, html)
    with browser.opened(pipe, html, 390, 844, dark=False) as page:
        page.evaluate("document.querySelector('#chart-bytes text').setAttribute('transform', 'translate(500, 0)')")
        assert page.evaluate(CUT) != []
        page.evaluate("document.body.insertAdjacentHTML('beforeend', '<div style=\"width: 600px\">wide</div>')")
        assert page.evaluate(OVERFLOW) > 0


def test_a_change_of_scheme_recolours_the_charts(lenet: Report, pipe: browser.Pipe, tmp_path: Path) -> None:
    html = tmp_path / "report.html"
    write(lenet, html)
    colour = "getComputedStyle(document.querySelector('#chart-dense .point path')).fill"
    with browser.opened(pipe, html, 1280, 900, dark=False) as page:
        light = page.evaluate(colour)
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert page.evaluate(colour) != light


def test_a_screenshot_has_the_size_asked_for(lenet: Report, pipe: browser.Pipe, tmp_path: Path) -> None:
    write(lenet, tmp_path / "report.html")
    browser.screenshot(pipe, tmp_path / "report.html", tmp_path / "shot.png", 1280, 900, dark=False)
    header = (tmp_path / "shot.png").read_bytes()[:24]
    assert (int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")) == (1280, 900)
