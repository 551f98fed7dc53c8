"""report.json: what is written is what is read, and what is no report is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kogata.errors import DataError
from kogata.report.data import Report


@pytest.mark.parametrize("name", ["lenet", "bare", "empty", "deep", "slight", "hostile"])
def test_a_saved_report_loads_equal(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    report: Report = request.getfixturevalue(name)
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report


def test_the_rates_in_the_file_are_the_ratios(lenet: Report, tmp_path: Path) -> None:
    lenet.save(tmp_path / "report.json")
    rates = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["rates"]
    assert rates["alpha"] == pytest.approx(1_724_892 / lenet.compressed.bytes)
    assert rates["beta"] == pytest.approx(1 - lenet.compressed.bytes / 1_724_892)
    assert rates["delta"] == pytest.approx(0.462 / 0.241)


def test_a_report_of_the_first_version_has_its_speed_up_among_the_rates(lenet: Report, tmp_path: Path) -> None:
    lenet.save(tmp_path / "report.json")
    kept = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    del kept["delta"]
    (tmp_path / "report.json").write_text(json.dumps(kept), encoding="utf-8")
    assert Report.load(tmp_path / "report.json") == lenet


def test_the_fixture_adds_up(lenet: Report) -> None:
    parts = sum(layer.bytes for layer in lenet.layers) + sum(lenet.rest_bytes.values())
    assert parts == lenet.compressed.bytes
    assert all(layer.bytes == sum(plane.bytes for plane in layer.planes) for layer in lenet.layers)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"title": "x"}'])
def test_what_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"report\.json"):
        Report.load(path)


def test_a_missing_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        Report.load(tmp_path / "report.json")
