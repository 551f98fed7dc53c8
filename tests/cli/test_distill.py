"""``kogata distill`` as a program: a small student of the perceptron on digits."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kogata.errors import DataError, UsageError
from kogata.tasks.taskfile import open_network
from tests.cli.test_resume import stop

Program = Callable[..., subprocess.CompletedProcess[str]]
STUDENT = """
from torch import nn

def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

def wide():
    return nn.Sequential(nn.Linear(64, 12))

def number():
    return 3
"""


@pytest.fixture
def student(tmp_path: Path) -> Path:
    path = tmp_path / "student.py"
    path.write_text(STUDENT, encoding="utf-8")
    return path


def test_a_student_learns_and_is_compared_with_its_teacher(kogata: Program, student: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [
        "distill", "digits-mlp", "--student", f"{student}:small", "--term", "0.1*labels", "--term", "0.9*soft-targets",
        "--epochs", 8, "--learning-rate", 0.01, "--cache", tmp_path / "cache", "-o", run,
    ]  # fmt: skip
    told = kogata(*arguments).stdout
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert "Report:" in told
    assert report["names"] == ["teacher", "student"]
    assert report["dense"]["parameters"] == 9610
    assert report["compressed"]["parameters"] == 64 * 16 + 16 + 160 + 10
    assert report["compressed"]["score"] > 90
    assert report["dense"]["latency_ms"]
    assert [layer["site"] for layer in report["layers"]] == ["1.weight", "3.weight"]
    terms = report["recipe"]["steps"][0]["term"]["terms"]
    assert [(term["term"], term["weight"]) for term in terms] == [("labels", 0.1), ("soft-targets", 0.9)]
    assert (tmp_path / "cache" / "header.json").exists()
    assert json.loads(kogata(*arguments, "--resume", "--json").stdout)["dense"] == report["dense"]


def test_a_recipe_says_what_options_cannot(kogata: Program, student: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "hints.yaml"
    recipe.write_text(
        "steps:\n  - {method: recover, epochs: 1, term: [labels, {term: hints, student: '2', teacher: 'fc?'}]}\n",
        encoding="utf-8",
    )
    words = ["distill", "digits-mlp", "--student", f"{student}:small", "--engine", "none", "-o", tmp_path / "run"]
    told = kogata(*words, "--recipe", recipe, code=2).stderr
    assert "term hints: the globs match 1 layers of the student (2) and 2 of the teacher" in told
    assert "leave out --term" in kogata(*words, "--recipe", recipe, "--epochs", 2, code=2).stderr


@pytest.mark.parametrize(
    ("reference", "error", "words"),
    [
        ("FILE:number", DataError, r"number\(\) returned a value of type int"),
        ("FILE:absent", DataError, r"there is no function absent\(\)"),
        ("FILE", UsageError, "expected FILE.py:function"),
        ("nowhere.py:net", UsageError, "there is no such file"),
    ],
)
def test_students_that_cannot_be_opened(student: Path, reference: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        open_network(reference.replace("FILE", str(student)), 0)


def test_a_student_is_drawn_from_the_seed(student: Path) -> None:
    first, second, other = (open_network(f"{student}:small", seed).state_dict()["1.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--student", "FILE:wide"], 4, "shape"),
        (["--student", "FILE:small", "--term", "soft-target"], 2, "did you mean 'soft-targets'"),
        (["--student", "FILE:small", "--term", "much*labels"], 2, "a weight and a name"),
    ],
)
def test_errors_say_what_to_do(
    kogata: Program, student: Path, tmp_path: Path, options: list[str], code: int, words: str
) -> None:  # fmt: skip
    options = [option.replace("FILE", str(student)) for option in options]
    done = kogata("distill", "digits-mlp", *options, "--engine", "none", "-o", tmp_path / "run", code=code)
    assert words in " ".join(done.stderr.split())


def test_a_stopped_distillation_goes_on_to_the_same_bytes(
    command: tuple[list[str], dict[str, str]], kogata: Program, student: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "hints.yaml"
    recipe.write_text(
        "steps:\n  - {method: recover, epochs: 40, term: [labels, {term: hints, student: '2', teacher: relu1}]}\n",
        encoding="utf-8",
    )
    words = ["distill", "digits-mlp", "--student", f"{student}:small", "--recipe", str(recipe), "--engine", "none", "-o"]
    kogata(*words, tmp_path / "straight")
    stopped = tmp_path / "stopped"
    told = stop(command, [*words, str(stopped)], stopped / "log.jsonl", "epoch 2 of 40", signal.SIGINT)
    assert "kogata distill digits-mlp" in told
    kogata(*words, stopped, "--resume")
    assert "resumed after epoch" in (stopped / "log.jsonl").read_text(encoding="utf-8")
    assert (stopped / "model.kogata").read_bytes() == (tmp_path / "straight" / "model.kogata").read_bytes()
