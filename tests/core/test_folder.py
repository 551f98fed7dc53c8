"""The folder of a run: never overwritten, never mixed up, and a resumed run ends with the same bytes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import kogata
from kogata import Result
from kogata.calibration.prepare import prepare
from kogata.errors import DataError, NotApplicable, UsageError
from kogata.job import Job, Step, Task
from kogata.measure.sizes import dense_bytes
from kogata.methods import SVD, Half, KMeans, MagnitudePruning, Recover
from kogata.methods.base.compose import chain
from kogata.methods.base.method import Method
from kogata.network import surgery
from kogata.network.fingerprint import fingerprint
from kogata.storage.folder import Folder
from kogata.storage.load import load
from kogata.testing.comparisons import assert_equal, assert_near, assert_untouched, snapshot, weights

METHOD = chain(MagnitudePruning(sparsity=0.5), Recover(epochs=3, learning_rate=1e-2), KMeans(clusters=5), Recover(epochs=2))
FILES = {"recipe.yaml", "model.kogata", "report.json", "report.html", "log.jsonl"}


def network() -> nn.Module:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Dropout(0.2), nn.Linear(24, 5))
    model[0].bias.requires_grad_(False)  # type: ignore[union-attr]
    return model


class Killed(Exception):  # noqa: N818
    pass


class Batches:
    """Three batches; the given pass over them is broken off."""

    def __init__(self, breaks_in: int | None = None) -> None:
        generator = torch.Generator().manual_seed(6)
        self.data = [
            (torch.randn(16, 24, generator=generator), torch.randint(0, 5, (16,), generator=generator)) for _ in range(3)
        ]
        self.passes, self.breaks_in = 0, breaks_in

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        for number, batch in enumerate(self.data):
            if self.passes == self.breaks_in and number == 1:
                raise Killed
            yield batch


def task(breaks_in: int | None = None) -> Task:
    return Task(calibration=Batches().data[:1], train=Batches(breaks_in), loss=nn.functional.cross_entropy)


def run(folder: Path, breaks_in: int | None = None, *, resume: bool = False, method: Method = METHOD, seed: int = 1) -> Result:
    return kogata.compress(network(), task(breaks_in), method, output=folder, seed=seed, engine=None, resume=resume)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a run that nothing stopped."""
    result = run(tmp_path_factory.mktemp("runs") / "whole")
    assert {entry.name for entry in result.folder.iterdir()} == FILES
    return result.path.read_bytes()


@pytest.mark.parametrize("breaks_in", [1, 2, 4, 5])
def test_a_resumed_run_ends_with_the_same_bytes(breaks_in: int, whole: bytes, tmp_path: Path) -> None:
    """Broken off in the first and the second epoch of each of the two recoveries."""
    with pytest.raises(Killed):
        run(tmp_path / "run", breaks_in)
    assert not (tmp_path / "run" / "model.kogata").exists()
    torch.manual_seed(123)
    result = run(tmp_path / "run", resume=True)
    assert result.path.read_bytes() == whole
    assert {entry.name for entry in result.folder.iterdir()} == FILES
    assert [step.name for step in result.report.steps] == ["magnitude", "recover", "k-means", "recover"]
    assert [len(step.epochs) for step in result.report.steps] == [0, 3, 0, 2]


def test_same_seed_same_bytes(whole: bytes, tmp_path: Path) -> None:
    assert run(tmp_path / "again").path.read_bytes() == whole
    assert run(tmp_path / "other", seed=2).path.read_bytes() != whole


def test_killed_between_a_step_and_the_next(whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the writing of a checkpoint stops, what is found next time is a whole one."""
    genuine, calls = Path.unlink, 0

    def unlink(self: Path, missing_ok: bool = False) -> None:
        nonlocal calls
        calls += self.name.startswith(("step-", "training"))
        if calls == stop and self.name.startswith(("step-", "training")):
            raise Killed
        genuine(self, missing_ok=missing_ok)

    for stop in (1, 2, 3):
        calls = 0
        monkeypatch.setattr(Path, "unlink", unlink)
        with pytest.raises(Killed):
            run(tmp_path / str(stop))
        monkeypatch.undo()
        assert run(tmp_path / str(stop), resume=True).path.read_bytes() == whole


def test_a_step_never_takes_the_training_of_the_one_before(tmp_path: Path) -> None:
    """Two recoveries in a row: the second starts from the end of the first, not from its checkpoint."""
    two = chain(Recover(epochs=2, learning_rate=1e-2), Recover(epochs=2, learning_rate=1e-2))
    result = run(tmp_path / "run", method=two)
    assert [len(step.epochs) for step in result.report.steps] == [2, 2]
    assert result.report.steps[0].epochs != result.report.steps[1].epochs


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    run(tmp_path / "run")
    before = {entry.name: entry.read_bytes() for entry in (tmp_path / "run").iterdir()}
    with pytest.raises(UsageError, match="holds a finished run"):
        run(tmp_path / "run")
    with pytest.raises(UsageError, match="holds a finished run"):
        run(tmp_path / "run", resume=True, method=Half())
    assert {entry.name: entry.read_bytes() for entry in (tmp_path / "run").iterdir()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=r"is not empty\. Choose another folder with -o"):
        run(tmp_path / "mine")


@pytest.mark.parametrize(("changed", "word"), [({"seed": 7}, "seed"), ({"method": chain(METHOD, Half())}, "recipe")])
def test_another_run_is_not_resumed(changed: dict[str, Any], word: str, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "run", 2)
    with pytest.raises(UsageError, match=f"interrupted run had another {word}"):
        run(tmp_path / "run", resume=True, **changed)


def test_another_model_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "run", 2)
    other = network()
    with torch.no_grad():
        other.get_parameter("0.bias")[3] += 1e-6
    with pytest.raises(UsageError, match="another model"):
        kogata.compress(other, task(), METHOD, output=tmp_path / "run", seed=1, engine=None, resume=True)


def test_resuming_nothing_begins(whole: bytes, tmp_path: Path) -> None:
    assert run(tmp_path / "new", resume=True).path.read_bytes() == whole


def test_checkpoints_give_back_the_job(tmp_path: Path) -> None:
    job = prepare(network(), task())
    folder = Folder(tmp_path / "run")
    folder.begin({"steps": []}, job, resume=False)
    assert folder.restore(job) == (job, [])
    after: Job = chain(SVD(rank=3), MagnitudePruning(sparsity=0.3)).apply(job)
    step = Step(name="svd", settings={"rank": 3}, seconds=1.0, bits_before=2.0, bits_after=1.0, loss=0.5)
    folder.save(after, [step])
    restored, steps = folder.restore(job)
    assert steps == [step]
    assert restored.ledger == after.ledger
    assert_equal(weights(restored.model), weights(after.model))
    trains = {name: p.requires_grad for name, p in after.model.named_parameters()}
    assert {name: p.requires_grad for name, p in restored.model.named_parameters()} == trains
    assert not trains["0.bias"]
    folder.save(dataclasses.replace(after), [step, step])
    assert sorted(entry.name for entry in folder.checkpoints.iterdir()) == ["state.json", "step-2.kogata"]


def test_the_log_is_json(tmp_path: Path) -> None:
    result = run(tmp_path / "run")
    lines = [json.loads(line) for line in (result.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(line.keys() == {"time", "level", "message"} for line in lines)
    assert any(line["message"].startswith("step 2 of 4: recover") for line in lines)


def test_a_fingerprint_sees_every_value() -> None:
    model = network()
    before = fingerprint(model)
    assert before == fingerprint(network())
    with torch.no_grad():
        model.get_parameter("3.bias")[-1] += 1e-6
    assert fingerprint(model) != before
    assert fingerprint(network().half()) != before
    assert len(fingerprint(nn.BatchNorm1d(2))) == 64


def test_an_illegal_chain_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(NotApplicable):
        run(tmp_path / "run", method=chain(KMeans(clusters=3), SVD(rank=2)))
    assert not (tmp_path / "run").exists()


def test_the_result_is_what_the_file_holds(tmp_path: Path) -> None:
    model = network()
    before = snapshot(model)
    result = kogata.compress(model, task(), METHOD, output=tmp_path / "run", engine=None)
    assert_untouched(model, before)
    loaded = kogata.load(result.path, into=network())
    assert_equal(weights(loaded), weights(result.model))
    assert result.report.compressed.bytes == result.path.stat().st_size == len(result.path.read_bytes())
    assert result.report.dense.bytes == dense_bytes(model)
    rest = result.report.rest_bytes
    assert sum(layer.bytes for layer in result.report.layers) + sum(rest.values()) == result.report.compressed.bytes


def test_a_bfloat16_model_is_compressed_with_the_default_engine_or_says_why(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).bfloat16()
    inputs = torch.randn(8, 64).bfloat16()
    result = kogata.compress(model, Task(calibration=[inputs]), KMeans(clusters=8), output=tmp_path / "run")
    assert result.report.alpha > 3
    assert result.report.compressed.latency_ms is not None or result.report.notes


def test_hub_verbs(tmp_path: Path) -> None:
    job = MagnitudePruning(sparsity=0.5).apply(prepare(network(), task()))
    path = kogata.save_pretrained(job.model, tmp_path / "hub")
    assert path == tmp_path / "hub" / "model.kogata"
    loaded = kogata.from_pretrained(tmp_path / "hub", into=network())
    assert_equal(weights(loaded), weights(job.model))
    inputs = torch.randn(2, 24)
    with torch.no_grad():
        assert_near(surgery.plain(loaded).eval()(inputs), job.model.eval()(inputs), 1e-7)


def test_evaluate_must_return_a_number(tmp_path: Path) -> None:
    bad = dataclasses.replace(task(), evaluate=lambda _: float("nan"))
    with pytest.raises(DataError, match=r"evaluate\(\) returned nan"):
        kogata.compress(network(), bad, Half(), output=tmp_path / "run", engine=None)


def test_what_is_measured_is_the_model_read_back_from_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the file must show in the report: here its reader returns zeros."""

    def zeros(*args: Any, **kwargs: Any) -> nn.Module:
        model = load(*args, **kwargs)
        for tensor in model.parameters():
            nn.init.zeros_(tensor)
        return model

    monkeypatch.setattr("kogata.flow.load", zeros)
    measured = dataclasses.replace(task(), evaluate=lambda model: float(sum(p.abs().sum() for p in model.parameters())))
    result = kogata.compress(network(), measured, KMeans(clusters=5), engine=None)
    assert result.report.compressed.score == 0
    assert result.report.dense.score
    assert not any(parameter.any() for parameter in result.model.parameters())
