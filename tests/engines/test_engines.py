"""Engines: the file alone runs, says what does not fit, and two models are timed call by call."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from torch import Tensor, nn

import kogata
from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.engines import ENGINES, ONNXRUNTIME, Eager, OnnxRuntime, onnx_graph
from kogata.engines.lowering.checked import lowered
from kogata.engines.lowering.layout import channels_last
from kogata.engines.lowering.lower import lower
from kogata.engines.onnxruntime import OnnxSession
from kogata.errors import DataError, EngineError, FileFormatError
from kogata.job import Job
from kogata.measure.latency import MINIMUM, WARM_UP, interleaved
from kogata.methods import SVD, KMeans, MagnitudePruning, RoundToNearest
from kogata.methods.base.compose import chain
from kogata.network import surgery
from kogata.network.batch import call, tensors
from kogata.storage.layout import EngineGraph
from kogata.storage.load import load
from kogata.storage.read import read_file
from kogata.storage.write import pack, write_file
from kogata.testing.comparisons import assert_near, batch_of, output
from kogata.testing.models import job_of


class TwoInputs(nn.Module):
    """Two named inputs and several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"sum": self.left(x) + self.right(y), "left": self.left(x)}


@dataclass
class Scored:
    """Outputs as libraries of language models give them: attributes, nesting, and entries that are no tensors."""

    logits: Tensor
    hidden: tuple[Tensor, ...]
    loss: Tensor | None = None
    step: int = 3


class Structured(nn.Module):
    """Returns the structure asked for; ``negate`` is a plain value, fixed when a graph is made."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor, scale: Tensor, negate: bool = False, kind: str = "dataclass") -> Any:
        hidden = self.first(x).relu()
        logits = self.last(hidden) * (-scale if negate else scale)
        return {
            "dataclass": Scored(logits, (hidden, x)), "list": [logits, {"hidden": hidden, "none": None}], "tensor": logits,
        }[kind]  # fmt: skip


def structure_of(value: Any) -> Any:
    """Classes and plain values of a nesting, with the shapes of its tensors."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return type(value), {key: structure_of(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value), [structure_of(part) for part in value]
    return (type(value), structure_of(vars(value))) if isinstance(value, Scored) else value


@pytest.mark.parametrize("kind", ["dataclass", "list", "tensor"])
def test_a_session_beside_a_model_returns_the_structure_of_its_outputs(kind: str) -> None:
    model, x, scale = Structured().eval().requires_grad_(False), torch.randn(4, 12), torch.rand(4, 1)
    session = OnnxRuntime().open_model(model, {"scale": scale, "x": x, "negate": True, "kind": kind})
    found, wanted = session(x[:2], scale[:2], negate=True, kind=kind), model(x[:2], scale[:2], True, kind)
    assert structure_of(found) == structure_of(wanted)
    for ours, theirs in zip(tensors(found), tensors(wanted), strict=True):
        assert_near(ours, theirs, 1e-5)
    with pytest.raises(DataError, match="negate=False was given, but True of the calibration data is built into the graph"):
        session(x, scale, negate=False, kind=kind)


def test_a_score_that_reads_an_attribute_of_the_outputs_is_the_same_in_the_engine() -> None:
    model, x, scale = Structured().eval(), torch.randn(16, 12), torch.rand(16, 1)
    task = Task(
        calibration=[{"x": x, "scale": scale, "negate": False}],
        evaluate=lambda network: float((network(x, scale).logits.argmax(1) == 0).float().mean()),
    )
    inside, outside = (kogata.compress(model, task, KMeans(clusters=4), engine=e).report for e in (OnnxRuntime(), None))
    assert inside.notes == ()
    assert inside.compressed.latency_ms is not None
    assert inside.compressed.score == pytest.approx(outside.compressed.score)


def with_graph(job: Job, inputs: Any, path: Path) -> Path:
    graph = onnx_graph.bind(onnx_graph.export(lower(job.model, ONNXRUNTIME).eval(), inputs), job.model)
    write_file(path, pack(job.model, graph))
    return path


class Branches(nn.Module):
    """Convolutions without a bias and with one that is computed; branches that read from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.bare, self.back = nn.Conv2d(3, 16, 3, bias=False), nn.ConvTranspose2d(16, 4, 3, bias=False)
        self.weight, self.offset = nn.Parameter(torch.randn(5, 4, 1, 1)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.back(self.bare(x)).relu()
        moved = nn.functional.conv2d(y, self.weight, self.offset * y.mean())
        return torch.cond(x.sum() > 0, lambda y: y + 1.0, lambda y: y * 2.0, (moved,))


def test_a_convolution_without_a_bias_has_none_in_the_graph() -> None:
    """Zeros computed at run time would keep it out of the engine's fast layout."""
    model, x = Branches().eval().requires_grad_(False), torch.randn(2, 3, 8, 8)
    proto = onnx_graph.export(model, x)
    assert [len(node.input) for node in proto.graph.node if "Conv" in node.op_type] == [2, 2, 3]
    assert not [node for node in proto.graph.node if node.op_type in ("CastLike", "Expand")]
    session = OnnxSession(proto)
    for images in (x, x.abs(), -x.abs()):
        assert_near(session(images), model(images), 1e-5)


@pytest.fixture(scope="module")
def job() -> Job:
    return chain(SVD(rank=0.25), MagnitudePruning(sparsity=0.3), KMeans(clusters=16)).apply(job_of("conv"))


@pytest.fixture(scope="module")
def path(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    inputs = batch_of(job)[0]
    return with_graph(job, inputs, tmp_path_factory.mktemp("files") / "m.kogata")


@pytest.mark.parametrize("engine", [engine() for engine in ENGINES], ids=lambda engine: engine.name)
def test_every_engine_runs_model_and_file(engine: Any, job: Job, path: Path) -> None:
    inputs, _ = batch_of(job)
    loaded = load(path, into=surgery.clone(job.reference, share=False))
    assert_near(call(engine.open_file(read_file(path), loaded, inputs), inputs), output(job, job.model), 1e-4)
    assert_near(call(engine.open_model(job.reference, inputs), inputs), output(job, job.reference), 1e-4)


def test_the_graph_file_still_loads_with_the_class(job: Job, path: Path) -> None:
    loaded = load(path, into=surgery.clone(job.reference, share=False))
    assert torch.equal(output(job, loaded), output(job, job.model))


def test_named_inputs_and_several_outputs(tmp_path: Path) -> None:
    inputs: Mapping[str, Tensor] = {"x": torch.randn(3, 24), "y": torch.randn(3, 24)}
    job = SVD(rank=3).apply(prepare(TwoInputs(), Task(calibration=[inputs])))
    session = kogata.open(with_graph(job, inputs, tmp_path / "m.kogata"))
    with torch.no_grad():
        wanted = tuple(job.model.eval()(**inputs).values())
    assert_near(session(**inputs), wanted, 1e-4)
    assert_near(session(x=inputs["x"].numpy(), y=inputs["y"].numpy()), wanted, 1e-4)
    assert_near(session(inputs["x"], inputs["y"]), wanted, 1e-4)


@pytest.mark.parametrize(
    "inputs",
    [
        (torch.randn(2, 3, 9, 9),),
        (torch.randn(2, 3, 8, 8).double(),),
        (torch.randn(3),),
        (),
        (torch.randn(2, 3, 8, 8),) * 2,
    ],
)
def test_inputs_that_do_not_fit(inputs: tuple[Tensor, ...], path: Path) -> None:
    with pytest.raises(DataError, match=r"onnxruntime: .*do not fit the graph"):
        kogata.open(path)(*inputs)


def test_a_file_without_a_graph(job: Job, tmp_path: Path) -> None:
    write_file(tmp_path / "m.kogata", pack(job.model))
    with pytest.raises(FileFormatError, match=r"has no engine graph.*kogata\.load"):
        kogata.open(tmp_path / "m.kogata")


@pytest.mark.parametrize("damage", ["site", "path", "data", "bomb", "onnx"])
def test_a_damaged_graph(damage: str, path: Path, job: Job, tmp_path: Path) -> None:
    """A graph that is wrong behind a valid checksum."""
    graph = read_file(path).graph
    assert graph is not None
    bindings, data = dict(graph.bindings), graph.data
    name, (site, _, transposed) = next(iter(bindings.items()))
    match damage:
        case "site":
            bindings[name] = ("norm.running_mean", "factors.0", transposed)  # a buffer has no parts
        case "path":
            bindings[name] = (site, "factors.99", transposed)
        case "data":
            data = data[: len(data) // 2]
        case "bomb":
            frame = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(1000))
            data = frame[:4] + b"\xe4" + (1 << 40).to_bytes(8, "little") + frame[6:]
        case _:
            data = zstandard.ZstdCompressor(write_content_size=True).compress(b"\xff" * 100)
    broken = EngineGraph(data=data, bindings=bindings)
    write_file(tmp_path / "m.kogata", pack(job.model, broken))
    with pytest.raises(FileFormatError, match="engine graph"):
        kogata.open(tmp_path / "m.kogata")


def test_a_binding_to_another_shape(path: Path, job: Job, tmp_path: Path) -> None:
    graph = read_file(path).graph
    assert graph is not None
    bindings = dict.fromkeys(graph.bindings, ("out.bias", "", False))
    write_file(tmp_path / "m.kogata", pack(job.model, EngineGraph(data=graph.data, bindings=bindings)))
    with pytest.raises(FileFormatError, match="engine graph is damaged"):
        kogata.open(tmp_path / "m.kogata")


def test_models_that_cannot_be_exported_say_why() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if float(x.sum()) > 0 else x

    with pytest.raises(EngineError, match="Branching cannot be exported to ONNX: Could not guard on data-dependent"):
        OnnxRuntime().open_model(Branching(), torch.randn(2, 4))
    with torch.no_grad():
        assert Eager().open_model(Branching(), torch.ones(2, 4))(torch.ones(2, 4)).shape == (2, 4)


def test_an_output_that_hides_tensors_is_named_as_the_reason() -> None:
    class Cache:
        def __init__(self, rows: Tensor) -> None:
            self.rows = rows

    class Caching(nn.Linear):
        def forward(self, input: Tensor) -> Any:
            return super().forward(input), Cache(input)

    with pytest.raises(EngineError, match=r"Caching cannot be exported to ONNX: .*Cache'> in output") as caught:
        OnnxRuntime().open_model(Caching(4, 4), torch.randn(2, 4))
    assert "\n" not in str(caught.value)


def test_an_exported_graph_is_deterministic_and_names_no_file(job: Job) -> None:
    inputs = batch_of(job)[0]
    first, second = (
        onnx_graph.export(lower(job.model, ONNXRUNTIME).eval(), inputs).SerializeToString(deterministic=True) for _ in range(2)
    )
    assert first == second
    assert b".py" not in first
    assert OnnxSession(onnx_graph.export(lower(job.model, ONNXRUNTIME).eval(), inputs))(inputs).shape == (12, 6)


def test_calls_take_turns_and_every_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that take 0.5 and 3 ms: four of the one fill a turn, one of the other. Every second round runs in reverse."""
    now, order = 0, list[str]()

    def passes(name: str, nanoseconds: int) -> None:
        nonlocal now
        now += nanoseconds
        order.append(name)

    monkeypatch.setattr("time.perf_counter_ns", lambda: now)
    turns = interleaved([lambda: passes("a", 500_000), lambda: passes("b", 3_000_000)], runs=30)
    assert order == ["a"] * WARM_UP + ["b"] * WARM_UP + ["a", "a", "a", "a", "b", "b", "a", "a", "a", "a"] * 15
    first, second = turns.latency(0), turns.latency(1)
    assert (first.runs, second.runs) == (30, 30)
    assert (first.p50, second.p50, turns.speedup(1, 0)) == (0.5, 3.0, 6.0)


def test_models_timed_in_pytorch_have_one_memory_layout(tmp_path: Path) -> None:
    """Rounding changes no arithmetic, so nothing but the layout of the weights could make it faster."""
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(288, 4))
    x = torch.randn(8, 1, 10, 10)
    before = [parameter.stride() for parameter in net.parameters()]
    result = kogata.compress(net, Task(calibration=[x]), RoundToNearest(bits=8), engine=None, output=tmp_path)
    file = read_file(tmp_path / "model.kogata")
    dense, ours = Eager().open_model(net, x), Eager().open_file(file, result.model, x)
    strides = [{name: part.stride() for name, part in session.named_parameters()} for session in (dense, ours)]
    assert strides[0] == strides[1]
    assert dense.get_parameter("model.2.weight").is_contiguous(memory_format=torch.channels_last)
    assert before == [parameter.stride() for parameter in net.parameters()]
    assert_near(dense(x), net(x), 1e-5)


def test_layers_that_share_a_kernel_share_it_in_the_other_layout() -> None:
    first, second = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    second.weight = first.weight
    one, other = channels_last(nn.Sequential(first, second)).children()
    assert one.weight is other.weight
    assert first.weight.is_contiguous()


def test_medians_and_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that the calls themselves move: times 1 … 20 ms for one, ten times that for the other."""
    now, counts = 0, [0, 0]

    def passes(which: int) -> None:
        nonlocal now
        counts[which] += 1
        run = counts[which] - WARM_UP
        now += (run if run > 0 else 20) * (10_000_000 if which else 1_000_000)

    monkeypatch.setattr("time.perf_counter_ns", lambda: now)
    turns = interleaved([lambda: passes(0), lambda: passes(1)], runs=20)
    one, ten = turns.latency(0), turns.latency(1)
    assert (one.p50, one.minimum, one.p90) == (
        pytest.approx(10.5),
        pytest.approx(1.0),
        pytest.approx(np.quantile(range(1, 21), 0.9)),
    )
    assert ten.p50 == pytest.approx(105)
    assert one.noisy
    assert turns.speedup(0, 1) == pytest.approx(0.1)


@dataclass
class Machine:
    """A clock that two calls of 2 ms move, each turn of theirs ``slow(turn)`` times as long because of other work."""

    slow: Callable[[int], float]
    now: int = 0
    turns: int = -2 * WARM_UP  # a call of 2 ms fills a turn

    def run(self) -> None:
        self.now += round(2_000_000 * (self.slow(self.turns) if self.turns >= 0 else 1))
        self.turns += 1


LOADS: dict[str, Callable[[int], float]] = {
    "every second turn": lambda turn: 5.0 if turn % 2 else 1.0,
    "the second half": lambda turn: 5.0 if turn >= 100 else 1.0,
    "ever slower": lambda turn: 1.0 + turn / 50,
    "at random": lambda turn: 1.0 + 4.0 * random.Random(turn).random(),
}


@pytest.mark.parametrize("load", LOADS)
def test_a_model_is_as_fast_as_itself_on_a_busy_machine(load: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(LOADS[load])
    monkeypatch.setattr("time.perf_counter_ns", lambda: machine.now)
    turns = interleaved([machine.run, machine.run])
    assert turns.speedup(0, 1) == pytest.approx(1, abs=0.06)
    assert turns.latency(0).noisy or turns.latency(1).noisy


def test_slow_models_get_fewer_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def slow() -> None:
        nonlocal now
        now += 5.0

    monkeypatch.setattr("time.perf_counter", lambda: now)
    assert interleaved([slow]).latency(0).runs == MINIMUM


class ReadsWeight(nn.Module):
    """Uses its layer's weight past the layer's forward, as tied output layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) @ self.layer.weight


def test_lowering_falls_back_where_a_forward_reads_the_weight(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model, x = ReadsWeight(), torch.randn(4, 32)
    task = Task(calibration=[x])
    job = SVD(rank=4).apply(Job(model=model, reference=model, task=task))
    assert isinstance(lower(job.model).get_submodule("layer"), nn.Sequential)
    plain = lowered(job.model, x, ONNXRUNTIME)
    assert isinstance(plain.get_submodule("layer"), nn.Linear)
    torch.testing.assert_close(plain(x), job.model(x))
    assert "layer stays dense" in caplog.text
