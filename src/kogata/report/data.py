"""The data of a report, shared by ``report.json``, the terminal table and ``report.html``.

Bytes are counted in real files, milliseconds are measured in the named engine, and scores are those of the model reloaded from
its file.
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
NOISY = 1.5  # median over minimum from which a measurement counts as disturbed; it is below 1.2 on an idle machine


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of one forward pass on one sample: median, 90th percentile and minimum over ``runs`` passes.

    The passes alternate with those of the other model in one process, so that disturbances affect both.

    >>> Latency(p50=2.0, p90=2.4, minimum=1.9, runs=100).noisy, Latency(p50=2.0, p90=2.4, minimum=0.9, runs=100).noisy
    (False, True)
    """

    p50: float
    p90: float
    minimum: float
    runs: int

    @property
    def noisy(self) -> bool:
        """Whether the median is so far above the minimum that other work on the machine must have disturbed most passes."""
        return self.p50 > NOISY * self.minimum


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two models compared: the dense original or teacher, or the compressed model reloaded from its file."""

    bytes: int = Field(gt=0)
    score: float | None  # higher is better; None when the task has no evaluate
    parameters: int  # stored values: kept weights, centroids, scales, biases
    latency_ms: Latency | None  # None without an engine, or when the export failed (see Report.notes)


@dataclass(frozen=True, kw_only=True)
class PlaneLine:
    """One stored array (plane) of a layer: its coder and its sizes in bytes."""

    name: str
    elements: int
    coder: str
    bytes: int
    packed_bytes: int  # with fixed-width elements and no entropy coding
    entropy_bytes: float  # Shannon entropy of its histogram; an adaptive coder may need less


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Bytes, time and loss of one weight, before and after compression."""

    site: str
    kind: str
    shape: tuple[int, ...]
    form: str  # e.g. "masked(codebook)"
    parameters: int
    macs: int | None
    dense_bytes: int
    bytes: int
    dense_ms: float | None  # time of the layer that owns the weight, in eager PyTorch
    ms: float | None
    loss: float | None  # increase of the calibration loss when only this layer is changed, summed over steps; with explain
    planes: tuple[PlaneLine, ...]
    error: float | None = None  # relative squared error of the weights that the steps replaced, summed over the steps
    increase: float | None = None  # predicted increase of the loss of a sample, summed over the steps that predict it


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything needed to judge a compression and to repeat it.

    >>> file = Side(bytes=1000, score=99.1, parameters=250, latency_ms=None)
    >>> report = Report(
    ...     title="example", task="example", engine=None, command="", seed=0, recipe={}, environment={}, dense=file,
    ...     compressed=Side(bytes=100, score=99.0, parameters=50, latency_ms=None), layers=(), rest_bytes={}, steps=(),
    ... )
    >>> report.alpha, report.beta, report.delta
    (10.0, 0.9, None)
    """

    title: str
    task: str
    engine: str | None
    command: str  # the command that repeats the run
    seed: int
    recipe: dict[str, Any]  # resolved: with all defaults filled in
    environment: dict[str, Any]  # cpu, cpu_flags, threads, versions, date
    dense: Side
    compressed: Side
    layers: tuple[Layer, ...]
    rest_bytes: dict[str, int]  # header, manifest, graph, other tensors; with the layers they sum to the file
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()  # what was left undone, and why
    names: tuple[Literal["dense", "teacher"], Literal["compressed", "student"]] = ("dense", "compressed")  # for the two models
    targets: dict[str, str] = field(default_factory=dict[str, str])  # the requested targets, as written
    missed: tuple[str, ...] = ()  # descriptions of the missed targets
    delta: float | None = None  # speed-up δ: median over alternate passes of dense over compressed time; None if not measured
    schema: int = SCHEMA

    @property
    def explained(self) -> bool:
        """Whether the loss from single layers was measured."""
        return any(layer.loss is not None for layer in self.layers)

    @property
    def latencies(self) -> dict[str, Latency | None]:
        """The latency of each of the two models by its name."""
        return {self.names[0]: self.dense.latency_ms, self.names[1]: self.compressed.latency_ms}

    @property
    def changes(self) -> Literal["loss", "predicted loss", "error", ""]:
        """What is known of what became of each layer: the best measure of it that there is; empty where nothing is."""
        if self.explained:
            return "loss"
        if any(layer.increase is not None for layer in self.layers):
            return "predicted loss"
        return "error" if any(layer.error is not None for layer in self.layers) else ""

    @property
    def alpha(self) -> float:
        """Compression rate α = a / a*: dense over compressed file bytes (survey, section VII)."""
        return self.dense.bytes / self.compressed.bytes

    @property
    def beta(self) -> float:
        """Space saving β = (a − a*) / a, the fraction of the dense file's bytes that is saved."""
        return 1 - self.compressed.bytes / self.dense.bytes

    def save(self, path: Path) -> None:
        """Write ``report.json``: the fields of this class and the three rates. Raises DataError if it cannot be written."""
        rates = {"alpha": self.alpha, "beta": self.beta, "delta": self.delta}
        text = json.dumps(_plain({**asdict(self), "rates": rates}), indent=1, ensure_ascii=False, allow_nan=False)
        with writing(path) as file:
            file.write(text.encode() + b"\n")

    @staticmethod
    def load(path: Path) -> Report:
        """Read ``report.json``. Raises DataError when it is missing, damaged or of a newer schema."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["schema"] > SCHEMA:
                raise ValueError(f"its schema is {data['schema']}, this version reads up to {SCHEMA}")
            rates = data.pop("rates", {})
            data.setdefault("delta", rates.get("delta"))  # reports of version 0.1 have it among the rates alone
            return TypeAdapter(Report).validate_python(data)
        except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
            raise DataError(f"report: cannot read {path}: {error}. Expected a report.json of `kogata compress`.") from None


def _plain(value: Any) -> Any:
    """Convert to JSON values: numbers that are not finite become null, values of other types become text."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in cast("list[Any]", value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, bool | int | str | type(None)) else str(value)
