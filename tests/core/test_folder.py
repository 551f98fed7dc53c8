"""The folder of a run: never overwritten, never mixed up, and a resumed run ends with the same bytes."""

from __future__ import annotations

import dataclasses
import gc
import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kogata
from kogata import Result
from kogata.calibration.identity import data_digests
from kogata.calibration.prepare import prepare
from kogata.errors import DataError, FileFormatError, NotApplicable, UsageError
from kogata.job import Job, Step, Task
from kogata.methods import SVD, Half, KMeans, MagnitudePruning, Recover
from kogata.methods.base.compose import chain
from kogata.methods.base.method import Method
from kogata.network import surgery
from kogata.network.fingerprint import fingerprint
from kogata.storage.dense import dense_bytes
from kogata.storage.folder import Folder
from kogata.storage.load import load
from kogata.system.lock import locked
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


LOOKS = 2  # a run looks at the first batches twice before it begins, to know its data again


class Batches:
    """Three batches; the given pass over them, of those that train, is broken off."""

    def __init__(self, breaks_in: int | None = None) -> None:
        generator = torch.Generator().manual_seed(6)
        self.data = [
            (torch.randn(16, 24, generator=generator), torch.randint(0, 5, (16,), generator=generator)) for _ in range(3)
        ]
        self.passes, self.breaks_in = 0, breaks_in

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        for number, batch in enumerate(self.data):
            if self.breaks_in is not None and self.passes == LOOKS + self.breaks_in and number == 1:
                raise Killed
            yield batch


def task(breaks_in: int | None = None) -> Task:
    return Task(calibration=Batches().data[:1], train=Batches(breaks_in), loss=nn.functional.cross_entropy)


def interrupted(folder: Path, breaks_in: int = 2) -> None:
    """A run that is broken off, by default in the second epoch of its second step."""
    with pytest.raises(Killed):
        run(folder, breaks_in)


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
        calls += self.name.startswith("step-")
        if calls == stop and self.name.startswith("step-"):
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


@pytest.mark.parametrize(
    ("changed", "word"), [({"seed": 7}, r"seed \(1, now 7\)"), ({"method": Half()}, r"recipe \(the steps magnitude are done")]
)
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
    folder.begin({"steps": []}, [{}, {}], job, resume=False)
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


def test_the_finished_steps_may_begin_a_longer_recipe(tmp_path: Path) -> None:
    longer = chain(METHOD, Half())
    fresh = run(tmp_path / "fresh", method=longer)
    interrupted(tmp_path / "run", 5)
    result = run(tmp_path / "run", resume=True, method=longer)
    assert result.path.read_bytes() == fresh.path.read_bytes()
    assert result.report.recipe == fresh.report.recipe


def test_a_changed_step_does_not_take_the_training_of_the_old_one(tmp_path: Path) -> None:
    other = chain(MagnitudePruning(sparsity=0.5), Recover(epochs=3, learning_rate=1e-3))
    fresh = run(tmp_path / "fresh", method=other)
    interrupted(tmp_path / "run")
    result = run(tmp_path / "run", resume=True, method=other)
    assert result.path.read_bytes() == fresh.path.read_bytes()
    assert result.report.steps[1].epochs == fresh.report.steps[1].epochs


@pytest.mark.parametrize("field", ["calibration", "train"])
def test_other_data_is_not_mixed_in(field: str, tmp_path: Path) -> None:
    interrupted(tmp_path / "run")
    changed = [(x + 1, y) for x, y in Batches().data][: 1 if field == "calibration" else 3]
    other = dataclasses.replace(task(), **{field: changed})
    name = {"calibration": "calibration data", "train": "training data"}[field]
    with pytest.raises(UsageError, match=f"another {name}"):
        kogata.compress(network(), other, METHOD, output=tmp_path / "run", seed=1, engine=None, resume=True)


def test_data_that_is_shuffled_or_random_is_the_same_data() -> None:
    data = TensorDataset(torch.arange(96.0).reshape(24, 4), torch.arange(24))
    digests = set[str]()
    for _ in range(2):
        train = DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(len(digests)))
        next(iter(train))
        made = Task(calibration=DataLoader(data, batch_size=4, shuffle=True), train=train, loss=nn.functional.cross_entropy)
        job = Job(model=nn.Linear(4, 24), reference=nn.Linear(4, 24), task=made)
        state = torch.get_rng_state()
        digests |= set(data_digests(job).values())
        assert torch.equal(state, torch.get_rng_state())
    assert len(digests) == 1


def test_data_that_no_seed_repeats_is_known_by_its_shapes() -> None:
    drawn = Task(calibration=lambda model: [model(torch.from_numpy(np.random.default_rng().random((2, 4), np.float32)))])
    job = Job(model=nn.Linear(4, 24), reference=nn.Linear(4, 24), task=drawn)
    assert data_digests(job) == data_digests(job)
    wider = dataclasses.replace(drawn, calibration=lambda model: [model(torch.rand(3, 4))])
    assert data_digests(dataclasses.replace(job, task=wider)) != data_digests(job)


def test_another_thread_count_is_refused_with_the_way_out(tmp_path: Path) -> None:
    interrupted(tmp_path / "run")
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(
            UsageError, match=rf"another thread count \({threads}, now {threads + 1}\).*OMP_NUM_THREADS={threads}"
        ):
            run(tmp_path / "run", resume=True)
    finally:
        torch.set_num_threads(threads)
    run(tmp_path / "run", resume=True)


@pytest.mark.parametrize("name", ["state.json", "step-1.kogata"])
@pytest.mark.parametrize("kept", [0, 100])
def test_a_truncated_checkpoint_says_what_to_do(name: str, kept: int, whole: bytes, tmp_path: Path) -> None:
    interrupted(tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / name
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FileFormatError, match=rf"{name}: this checkpoint is damaged.*delete .*checkpoints and repeat"):
        run(tmp_path / "run", resume=True)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert run(tmp_path / "run", resume=True).path.read_bytes() == whole


@pytest.mark.parametrize("kept", [0, 100])
def test_a_truncated_training_checkpoint_costs_only_its_step(kept: int, whole: bytes, tmp_path: Path) -> None:
    interrupted(tmp_path / "run")
    (path,) = (tmp_path / "run").rglob("*.pt")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FileFormatError, match=r"training\.pt: this checkpoint of recover is damaged.*steps before it are kept"):
        run(tmp_path / "run", resume=True)
    path.unlink()
    assert run(tmp_path / "run", resume=True).path.read_bytes() == whole


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    interrupted(tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with locked(tmp_path / "run"), pytest.raises(UsageError, match="another process is working in this folder"):
        run(tmp_path / "run", resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_killed_while_it_deletes_its_checkpoints(whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(folder: Folder) -> None:
        (folder.checkpoints / "step-4.kogata").unlink()
        raise Killed

    monkeypatch.setattr(Folder, "finish", killed)
    with pytest.raises(Killed):
        run(tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(UsageError, match="holds a finished run"):
        run(tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "model.kogata").read_bytes() == whole


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_full_disk_loses_nothing(epoch: int, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of more than a few bytes cannot be written in the second step, whether torch or Kogata writes them."""
    genuine = torch.save

    def save(state: Any, file: Any) -> None:
        if len(state["history"]) == epoch:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, limits[1]))
        genuine(state, file)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(torch, "save", save)
    try:
        with pytest.raises(DataError, match=r"cannot write .*training\.pt: File too large\. Free space"):
            run(tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    monkeypatch.undo()
    assert not [path for path in (tmp_path / "run").rglob("*") if path.suffix == ".part"]
    assert run(tmp_path / "run", resume=True).path.read_bytes() == whole


def test_leftovers_of_a_killed_process_go(whole: bytes, tmp_path: Path) -> None:
    interrupted(tmp_path / "run")
    for place in (tmp_path / "run", tmp_path / "run" / "checkpoints"):
        (place / ".model.kogata.k2j4h5.part").write_bytes(b"half")
    result = run(tmp_path / "run", resume=True)
    assert result.path.read_bytes() == whole
    assert {entry.name for entry in result.folder.iterdir()} == FILES


def test_a_folder_that_cannot_be_written_to_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match=r"file.*: Not a directory\. Choose another folder with -o"):
        run(tmp_path / "file" / "run")
    with pytest.raises(DataError, match=r"file: File exists\. Choose another folder with -o"):
        run(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_resuming_does_not_begin_in_a_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="is not empty"):
        run(tmp_path, resume=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_temporary_folder_lasts_as_long_as_the_result() -> None:
    result = kogata.compress(network(), task(), MagnitudePruning(sparsity=0.5), engine=None)
    folder = result.folder
    assert result.path.exists()
    del result
    gc.collect()
    assert not folder.exists()


def test_a_failed_run_leaves_no_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(Killed):
        kogata.compress(network(), task(1), METHOD, engine=None)
    assert not list(tmp_path.iterdir())


def test_a_step_that_can_change_nothing_is_a_note_at_the_end_and_an_error_at_the_start(tmp_path: Path) -> None:
    idle = MagnitudePruning(sparsity=0.0)
    result = run(tmp_path / "run", method=chain(MagnitudePruning(sparsity=0.5), Recover(epochs=1), idle))
    assert any(note.startswith("step 3 changed nothing: magnitude: nothing to do") for note in result.report.notes)
    assert "changed nothing" in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8")
    fresh = run(tmp_path / "fresh", method=chain(MagnitudePruning(sparsity=0.5), Recover(epochs=1)))
    assert result.path.read_bytes() == fresh.path.read_bytes()
    with pytest.raises(NotApplicable, match="nothing to do"):
        run(tmp_path / "first", method=chain(idle, Recover(epochs=1)))


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
