"""The cache of a teacher: served runs equal live ones, the teacher runs once, and what does not fit is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kogata.errors import DataError
from kogata.job import Job
from kogata.methods import Recover
from kogata.tasks.batches import Batches
from kogata.testing.comparisons import assert_equal, assert_near
from kogata.training.loop import autocast
from kogata.training.teachers.cache import Cached, Precision, keys, make
from kogata.training.teachers.observe import Live
from kogata.training.terms import Hints, Labels, SoftTargets, SumOfTerms, Term
from tests.methods.training import examples, network, trained

TERM = SumOfTerms(terms=(Labels(), SoftTargets(), Hints(student=("2",), teacher=("5",))))


class Counted(nn.Module):
    """A teacher that counts the examples it sees, in whatever copy."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, list[int]()

    def __deepcopy__(self, memo: Any) -> Counted:
        twin = Counted(self.inner)
        twin.seen = self.seen
        return twin

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.inner(x)


def job(batches: Any = None, teacher: nn.Module | None = None) -> Job:
    torch.manual_seed(3)
    student = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    task = replace(trained().task, train=batches or Batches(*examples(), batch_size=32, shuffle=True))
    return replace(trained(), model=student, task=task, reference=teacher or trained().model)


def learnt(folder: Path | None, precision: Any = "float32", term: Term | None = TERM, on: Job | None = None) -> Job:
    cache = None if folder is None else str(folder)
    return Recover(epochs=2, learning_rate=1e-2, term=term, cache=cache, cache_precision=precision).apply(on or job())


@pytest.mark.parametrize("term", [TERM, None], ids=["term", "default"])
def test_a_cached_run_is_the_live_run(term: Term | None, tmp_path: Path) -> None:
    live, made, read = (learnt(folder, term=term) for folder in (None, tmp_path / "c", tmp_path / "c"))
    assert_equal(read.model.state_dict(), made.model.state_dict())
    assert read.epochs == made.epochs
    for name, tensor in live.model.state_dict().items():
        assert_near(made.model.state_dict()[name].float(), tensor.float(), 1e-4)


def test_what_is_served_is_what_the_teacher_says(tmp_path: Path) -> None:
    teacher, inputs = trained().model, examples()[0]
    bounds: dict[Precision, float] = {"float32": 1e-6, "float16": 1e-3}
    for precision, bound in bounds.items():
        folder = tmp_path / precision
        make(folder, teacher, [inputs[:100], inputs[100:]], ["2", "0"], precision=precision)
        chosen = torch.randperm(256)[:50]
        found = Cached(folder, teacher, ["2"], precision)(inputs[chosen], torch.device("cpu"))
        with autocast(torch.device("cpu")):
            wanted = Live(teacher, ["2"])(inputs[chosen], torch.device("cpu"))
        assert list(found.layers) == ["2"]
        assert found.output.dtype == torch.float32
        assert_near(found.output, wanted.output, bound)
        assert_near(found.layers["2"], wanted.layers["2"], bound)


def test_the_teacher_runs_once_over_the_data(tmp_path: Path) -> None:
    teacher = Counted(network())
    before = torch.get_rng_state()
    on = job(teacher=teacher)
    torch.set_rng_state(before)
    for _ in range(2):
        learnt(tmp_path / "c", term=SoftTargets(), on=on)
    assert sum(teacher.seen) == 256
    assert torch.equal(torch.get_rng_state(), before)


def test_digests_are_of_the_bytes_of_each_row() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
    found = keys(rows)
    assert found[0] == found[2] != found[1]
    assert found[0] == hashlib.blake2b(b" torch.float32 (2,) " + rows[0].numpy().tobytes(), digest_size=16).digest()
    assert keys({"a": rows, "b": rows})[0] != keys({"b": rows, "a": rows})[1]
    assert keys((rows, rows.int()))[0] == keys((rows[:1], rows[:1].int()))[0]
    assert keys(rows.half())[0] != found[0]
    with pytest.raises(DataError, match="one row for each example"):
        keys((rows, rows[:2]))


def test_several_outputs(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
            return {"boxes": self.layer(x) * scale, "heat": x.unsqueeze(1)}

    teacher, batch = Two(), (torch.randn(6, 3), torch.randn(6, 1))
    make(tmp_path / "c", teacher, [(batch, None)], precision="float32")
    found = Cached(tmp_path / "c", teacher, [], "float32")(batch, torch.device("cpu")).output
    with autocast(torch.device("cpu")):
        wanted = teacher(*batch)
    for ours, theirs in zip(found, wanted.values(), strict=True):
        assert_near(ours, theirs.detach().float(), 1e-6)


class Augmented:
    def __iter__(self) -> Iterator[Any]:
        inputs, targets = examples()
        yield inputs + torch.randn(256, 1), targets


def test_random_inputs_cannot_be_cached(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the inputs differ from pass to pass, by random augmentation"):
        learnt(tmp_path / "c", on=job(Augmented()))
    assert not list(tmp_path.iterdir())
    learnt(tmp_path / "c")
    with pytest.raises(DataError, match="256 of 256 examples of a training batch are not in it"):
        learnt(tmp_path / "c", on=job(Augmented()))


def test_a_cache_that_does_not_fit(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    learnt(folder, term=SoftTargets())
    torch.manual_seed(9)
    for reason, attempt in {
        "made with another teacher": lambda: learnt(folder, on=job(teacher=network())),
        "lacks the layers 5; it holds none": lambda: learnt(folder),
        "holds float32 but float16 was requested": lambda: learnt(folder, "float16", term=SoftTargets()),
        "32 of 32 examples": lambda: learnt(folder, term=SoftTargets(), on=job([(torch.randn(32, 12), examples()[1][:32])])),
    }.items():
        with pytest.raises(DataError, match=reason):
            attempt()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="exists and is not a cache"):
        learnt(tmp_path / "full")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("damage", ["short", "pickle", "shape", "header", "schema", "rows"])
def test_a_damaged_cache(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    make(folder, trained().model, [examples()[0]])
    header = json.loads((folder / "header.json").read_text())
    array = folder / "0.npy"
    if damage == "short":
        array.write_bytes(array.read_bytes()[:-100])
    elif damage == "pickle":
        np.save(array, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif damage == "shape":
        np.save(array, np.zeros((256, 4), np.float16))
    elif damage == "header":
        (folder / "header.json").write_text("{")
    else:
        header |= {"schema": 2} if damage == "schema" else {"rows": 10**12}
        (folder / "header.json").write_text(json.dumps(header))
    with pytest.raises(DataError, match=r"it is damaged: .*Delete it"):
        Cached(folder, trained().model, [], "float16")


def test_a_teacher_that_overflows_or_changes_shape(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not finite in float16"):
        make(tmp_path / "c", nn.Identity(), [torch.full((2, 3), 1e6)])
    with pytest.raises(DataError, match="as in the first batch"):
        make(tmp_path / "c", nn.Identity(), [torch.ones(2, 3), torch.ones(2, 4)])
    assert not list(tmp_path.iterdir())
