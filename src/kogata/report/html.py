"""The report as one self-contained HTML file that needs no network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from kogata.report import words
from kogata.report.charts import LIMIT, charts
from kogata.report.data import Report
from kogata.report.rows import layer_rows, total_row
from kogata.system.atomic import writing


@dataclass(frozen=True, kw_only=True)
class PlaneTotal:
    """The planes of one name and coder, summed over the layers."""

    name: str
    coder: str
    elements: int
    bytes: int
    packed_bytes: int
    entropy_bytes: float

    @property
    def bits(self) -> float | None:
        """Bits per element in the file."""
        return 8 * self.bytes / self.elements if self.elements else None

    @property
    def entropy_bits(self) -> float | None:
        """Bits per element under the static model."""
        return 8 * self.entropy_bytes / self.elements if self.elements else None

    @property
    def above(self) -> float | None:
        """The excess of the coded bytes over the entropy, in percent of the entropy; negative if below."""
        return 100 * (self.bytes / self.entropy_bytes - 1) if self.entropy_bytes else None


def write(report: Report, path: Path) -> None:
    """Write ``report.html``, complete or not at all. Raises DataError when ``path`` cannot be written."""
    environment = Environment(
        loader=PackageLoader("kogata.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        report=report,
        words=words,
        charts=charts(report),
        rows=layer_rows(report, None),
        total=total_row(report),
        # the heading of the column that says what became of each layer; none where nothing is known
        changes=report.changes.capitalize(),
        drawn=LIMIT,
        planes=_plane_totals(report),
        recipe=_pretty(report.recipe),
        environment=_pretty({key: value for key, value in report.environment.items() if key != "cpu_flags"}),
        cpu_flags=" ".join(map(str, report.environment.get("cpu_flags", []))),
        # JavaScript from plotly's own package: the only text that is not escaped
        plotly_js=Markup(get_plotlyjs()),
    )
    with writing(path) as file:
        file.write(page.encode())


def _plane_totals(report: Report) -> list[PlaneTotal]:
    grouped: dict[tuple[str, str], PlaneTotal] = {}
    for layer in report.layers:
        for plane in layer.planes:
            key = (plane.name, plane.coder)
            so_far = grouped.get(key)
            grouped[key] = PlaneTotal(
                name=plane.name,
                coder=plane.coder,
                elements=plane.elements + (so_far.elements if so_far else 0),
                bytes=plane.bytes + (so_far.bytes if so_far else 0),
                packed_bytes=plane.packed_bytes + (so_far.packed_bytes if so_far else 0),
                entropy_bytes=plane.entropy_bytes + (so_far.entropy_bytes if so_far else 0.0),
            )
    return sorted(grouped.values(), key=lambda total: -total.bytes)


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
