"""What a report holds: plain data, the same in ``report.json``, the terminal table and ``report.html``.

Every byte is a byte of a real file, every millisecond was measured in the named engine, every score is of the model
reloaded from the file.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, TypeAdapter

from kogata.errors import DataError
from kogata.job import Step
from kogata.system.atomic import writing

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of one forward pass of one sample, over ``runs`` turns that it took with the other model in one run."""

    p50: float
    p90: float
    minimum: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two models compared: the dense original or the teacher, or the one reloaded from its file."""

    bytes: int = Field(gt=0)
    score: float | None  # higher is better; None when the task has no evaluate
    parameters: int  # stored values: kept weights, centroids, scales, biases
    latency_ms: Latency | None  # None when no engine was asked for, or export failed (see Report.notes)


@dataclass(frozen=True, kw_only=True)
class PlaneLine:
    """One stored array of a layer."""

    name: str
    elements: int
    coder: str
    bytes: int
    packed_bytes: int  # at the fixed width of its elements, before any coding
    entropy_bytes: float  # under the plane's static zero-order model: an adaptive coder may go below it


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Where bytes, time and loss went for one weight."""

    site: str
    kind: str
    shape: tuple[int, ...]
    form: str  # e.g. "masked(codebook)"
    parameters: int
    macs: int | None
    dense_bytes: int
    bytes: int
    dense_ms: float | None  # of the layer that owns the weight, PyTorch eager
    ms: float | None
    loss: float | None  # increase of the calibration loss with only this layer changed, summed over the steps; if explained
    planes: tuple[PlaneLine, ...]
    error: float | None = None  # relative squared error of the weights that the steps replaced, summed over the steps


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything a person needs to judge a compression and to repeat it."""

    title: str
    task: str
    engine: str | None
    command: str  # what to type to repeat it
    seed: int
    recipe: dict[str, Any]  # resolved: every default written out
    environment: dict[str, Any]  # cpu, cpu_flags, threads, versions, date
    dense: Side
    compressed: Side
    layers: tuple[Layer, ...]
    rest_bytes: dict[str, int]  # header, manifest, graph, other tensors: with the layers' bytes they sum to the file
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()  # what was not done and why
    names: tuple[Literal["dense", "teacher"], Literal["compressed", "student"]] = ("dense", "compressed")  # of the two models
    targets: dict[str, str] = field(default_factory=dict[str, str])  # what was asked for, as written
    missed: tuple[str, ...] = ()  # which of them were missed, in words
    schema: int = SCHEMA

    @property
    def explained(self) -> bool:
        """Whether the loss from single layers was measured."""
        return any(layer.loss is not None for layer in self.layers)

    @property
    def alpha(self) -> float:
        """Compression rate α: dense file bytes over compressed file bytes (survey, section VII)."""
        return self.dense.bytes / self.compressed.bytes

    @property
    def beta(self) -> float:
        """Space saving β = (a − a*) / a, of file bytes."""
        return 1 - self.compressed.bytes / self.dense.bytes

    @property
    def delta(self) -> float | None:
        """Speed-up δ: dense over compressed median latency, measured in one interleaved run; None if not measured."""
        if self.dense.latency_ms is None or self.compressed.latency_ms is None:
            return None
        return self.dense.latency_ms.p50 / self.compressed.latency_ms.p50

    def save(self, path: Path) -> None:
        """Write ``report.json``: these fields plus the three rates."""
        rates = {"alpha": self.alpha, "beta": self.beta, "delta": self.delta}
        text = json.dumps(_plain({**asdict(self), "rates": rates}), indent=1, ensure_ascii=False, allow_nan=False)
        with writing(path) as file:
            file.write(text.encode() + b"\n")

    @staticmethod
    def load(path: Path) -> Report:
        """Read ``report.json`` back; raises DataError when it is missing or is not one."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["schema"] > SCHEMA:
                raise ValueError(f"its schema is {data['schema']}, this version reads up to {SCHEMA}")
            data.pop("rates", None)
            return TypeAdapter(Report).validate_python(data)
        except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
            raise DataError(f"report: cannot read {path}: {error}. Expected a report.json of `kogata compress`.") from None


def _plain(value: Any) -> Any:
    """JSON values only: what is not finite is missing, what is of no JSON type is written as text."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in cast("list[Any]", value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, bool | int | str | type(None)) else str(value)
