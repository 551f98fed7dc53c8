"""The rows of layer tables and charts: every layer, or the largest ones and the sum of the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from kogata.report.data import Layer, Report

UNSTORED = "not in a plane"


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row: a layer, or the sum of several."""

    site: str
    layers: int  # number of layers summed; 1 for a single layer
    form: str
    parameters: int
    weights: int  # entries of the dense weight
    dense_bytes: int
    bytes: int
    dense_ms: float | None
    ms: float | None
    loss: float | None
    error: float | None
    increase: float | None
    planes: dict[str, int]  # bytes by plane name; they sum to ``bytes`` unless the planes hold more than that

    @property
    def bits_per_weight(self) -> float | None:
        """Stored bits divided by the number of entries of the dense weight."""
        return 8 * self.bytes / self.weights if self.weights else None


def layer_rows(report: Report, limit: int | None) -> list[TableRow]:
    """The layers in the network's order. Beyond ``limit``: the layers largest in the compressed file, and the sum of others."""
    if limit is None or len(report.layers) <= limit:
        return [_row(layer) for layer in report.layers]
    by_bytes = sorted(range(len(report.layers)), key=lambda i: -report.layers[i].bytes)
    kept, folded = sorted(by_bytes[:limit]), by_bytes[limit:]
    others = _sum(f"others ({len(folded)})", [_row(report.layers[i]) for i in folded])
    return [_row(report.layers[i]) for i in kept] + [others]


def total_row(report: Report) -> TableRow:
    """The sum of all layers, without time and loss, because theirs do not add up to those of the model."""
    total = _sum("all layers", [_row(layer) for layer in report.layers])
    return replace(total, dense_ms=None, ms=None, loss=None)


def _row(layer: Layer) -> TableRow:
    planes: Counter[str] = Counter()
    for plane in layer.planes:
        planes[plane.name] += plane.bytes
    if layer.bytes > planes.total():
        planes[UNSTORED] = layer.bytes - planes.total()
    return TableRow(
        site=layer.site,
        layers=1,
        form=layer.form,
        parameters=layer.parameters,
        weights=math.prod(layer.shape),
        dense_bytes=layer.dense_bytes,
        bytes=layer.bytes,
        dense_ms=layer.dense_ms,
        ms=layer.ms,
        loss=layer.loss,
        error=layer.error,
        increase=layer.increase,
        planes=dict(planes),
    )


def _sum(name: str, rows: list[TableRow]) -> TableRow:
    planes: Counter[str] = Counter()
    for row in rows:
        planes.update(row.planes)
    return TableRow(
        site=name,
        layers=len(rows),
        form="",
        parameters=sum(row.parameters for row in rows),
        weights=sum(row.weights for row in rows),
        dense_bytes=sum(row.dense_bytes for row in rows),
        bytes=sum(row.bytes for row in rows),
        dense_ms=_known(row.dense_ms for row in rows),
        ms=_known(row.ms for row in rows),
        loss=_known(row.loss for row in rows),
        error=None,  # each is relative to its own weight: they do not add up
        increase=_known(row.increase for row in rows),
        planes=dict(planes),
    )


def _known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
