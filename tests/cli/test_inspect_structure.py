"""The program's table of structures, on a perceptron."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kogata.search.candidates import STRUCTURES, YARDSTICKS

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_the_table_fits_and_names_every_structure(kogata: Run) -> None:
    shown = kogata("inspect", "digits-mlp", "--structure").stdout
    assert max(map(len, shown.splitlines())) <= 80
    for layer in ("fc1.weight", "fc2.weight"):
        assert layer in shown
    words = shown.replace(",", " ").split()
    assert all(words.count(kind.ABOUT.name) >= 2 for kind in (*STRUCTURES, *YARDSTICKS))  # once for each layer


def test_a_wide_terminal_has_columns_for_the_yardsticks(kogata: Run) -> None:
    done = kogata("inspect", "digits-mlp", "--structure", "--fraction", "0.5", columns=120)
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[0] == "digits-mlp: every layer under each structure, at 50 % of its bytes"
    head = next(line for line in lines if "shape" in line)
    assert all(name in head for name in ("layer", "structures", "magnitude", "k-means"))


def test_json_has_errors_sizes_and_reasons(kogata: Run) -> None:
    found = json.loads(kogata("inspect", "digits-mlp", "--structure", "--fraction", "0.5", "--json").stdout)
    assert (found["task"], found["fraction"]) == ("digits-mlp", 0.5)
    assert [layer["site"] for layer in found["layers"]] == ["fc1.weight", "fc2.weight"]
    for layer in found["layers"]:
        scores = {score["structure"]: score for score in layer["structures"]}
        assert list(scores) == [kind.ABOUT.name for kind in STRUCTURES]
        measured = {name: score["error"] for name, score in scores.items() if score["error"] is not None}
        assert layer["best"] == min(measured, key=lambda name: measured[name])
        assert measured["whitened-svd"] <= measured["svd"]
        assert all(scores[name]["kept"] <= 0.5 * layer["parameters"] for name in measured)
        assert all(score["note"] for name, score in scores.items() if name not in measured)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--structure", "--fraction", "1.5"), "between 0 and 1"),
        (("--fraction", "0.5"), "add --structure"),
        (("--structure", "--fraction", "half"), "valid number"),
    ],
)
def test_wrong_options_say_so(kogata: Run, arguments: tuple[str, ...], reason: str) -> None:
    assert reason in kogata("inspect", "digits-mlp", *arguments, code=2).stderr


def test_a_file_has_no_calibration_data(kogata: Run, tmp_path: Path) -> None:
    assert "give the task instead" in " ".join(kogata("inspect", tmp_path / "m.kogata", "--structure", code=2).stderr.split())
