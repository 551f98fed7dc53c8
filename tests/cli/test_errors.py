"""What goes wrong becomes one message that names the place, and the exit code of its kind."""

import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from kogata.storage.write import pack, write_file

Run = Callable[..., subprocess.CompletedProcess[str]]

TASK = """
import torch
from torch import nn

def model():
    return nn.Linear(16, 4)

def calibration():
    return [torch.ones(8, WIDTH)]

def train():
    return [(torch.ones(8, 16), torch.zeros(8, dtype=torch.long))]

def loss(output, targets):
    return output.sum() * float("nan")
"""


def error(done: subprocess.CompletedProcess[str]) -> str:
    """The message: the last and only thing on stderr but for warnings, with nothing on stdout."""
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1
    return done.stderr[done.stderr.index("error: ") :]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("[{method: k-means, cluster: 8}]", "the key 'cluster' is unknown; did you mean 'clusters'?"),
        ("[{method: kmeans, clusters: 8}]", "method 'kmeans' is unknown; did you mean 'k-means'"),
        ("[{method: k-means, clusters: 8}, {method: svd, rank: 2}]", "Structure comes first"),
        ("[{method: k-means, clusters: 8, where: 'fc9.*'}]", "fc1.weight"),
    ],
)
def test_wrong_recipe(kogata: Run, tmp_path: Path, steps: str, expected: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(f"steps: {steps}\n", encoding="utf-8")
    message = error(kogata("compress", "digits-mlp", "--recipe", path, "-o", tmp_path / "run", "--dry-run", code=2))
    assert expected in message
    assert not (tmp_path / "run").exists()


def test_wrong_names(kogata: Run, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert "deep-compression" in error(kogata("compress", "digits-mlp", "--recipe", "deep", "-o", out, code=2))
    assert "digits-mlp" in error(kogata("compress", "digit-mlp", "--recipe", recipe, "-o", out, code=2))
    assert "no such file" in error(kogata("compress", "none.py", "--recipe", recipe, "-o", out, code=2))
    assert "1/20" in error(kogata("compress", "digits-mlp", "--recipe", recipe, "-o", out, "--size", "small", code=2))


def test_task_files_that_fail(kogata: Run, recipe: Path, tmp_path: Path) -> None:
    raising, narrow, nan = (tmp_path / f"{name}.py" for name in ("raising", "narrow", "nan"))
    raising.write_text("def model():\n    return 1 / 0\n", encoding="utf-8")
    narrow.write_text(TASK.replace("WIDTH", "15"), encoding="utf-8")
    nan.write_text(TASK.replace("WIDTH", "16"), encoding="utf-8")
    arguments = ("--recipe", recipe, "-o", tmp_path / "run", "--engine", "none")
    assert f"{raising}:2: model() failed with ZeroDivisionError" in error(kogata("compress", raising, *arguments, code=4))
    assert "first calibration batch" in error(kogata("compress", narrow, *arguments, code=4))
    assert "the loss became nan in epoch 1" in error(kogata("compress", nan, *arguments, code=4))


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_damaged_file(kogata: Run, finished: tuple[Path, str], tmp_path: Path, damage: str) -> None:
    data = bytearray((finished[0] / "model.kogata").read_bytes())
    path = tmp_path / "damaged.kogata"
    data[len(data) // 2] ^= 0x10
    if damage != "missing":
        path.write_bytes(data if damage == "flipped" else data[: len(data) // 2])
    assert str(path) in error(kogata("inspect", path, code=5))


def test_finished_folder_is_not_overwritten(kogata: Run, finished: tuple[Path, str], recipe: Path) -> None:
    folder = finished[0]
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert "finished run" in error(kogata("compress", "digits-mlp", "--recipe", recipe, "-o", folder, code=2))
    other = ("compress", "digits-mlp", "--recipe", recipe, "-o", folder, "--seed", "1", "--resume")
    assert "another" in error(kogata(*other, code=2))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_budget_is_refused_with_what_to_do(kogata: Run, tmp_path: Path) -> None:
    where = ("-o", tmp_path / "run", "--engine", "none")
    assert "--bytes 2.3MB" in error(kogata("compress", "digits-mlp", *where, code=2))
    assert "with every code zero" in error(kogata("compress", "digits-mlp", "--bytes", "600B", *where, code=2))
    assert "expected one step rate-obs" in error(
        kogata("compress", "digits-mlp", "--bytes", "9kB", "--recipe", "4-bit", *where, code=2)
    )


def test_missed_target_is_told_after_the_result(kogata: Run, tmp_path: Path) -> None:
    arguments = ("--recipe", "4-bit", "-o", tmp_path / "run", "--engine", "none", "--size", "1/1000")
    done = kogata("compress", "digits-mlp", *arguments, code=3)
    assert "Missed targets" in done.stdout
    assert f"{tmp_path / 'run' / 'report.html'}" in done.stdout
    assert "(1/1000)" in done.stderr
    assert (tmp_path / "run" / "model.kogata").exists()


def test_names_in_a_file_cannot_steer_the_terminal(kogata: Run, tmp_path: Path) -> None:
    model = nn.Sequential(OrderedDict({"\x1b[31mred": nn.Linear(8, 8)}))
    write_file(tmp_path / "red.kogata", pack(model))
    shown = kogata("inspect", tmp_path / "red.kogata").stdout
    assert "[31mred.weight" in shown
    assert "\x1b" not in shown


def test_other_errors_are_called_bugs_and_keep_the_traceback(command: tuple[list[str], dict[str, str]]) -> None:
    program = "from kogata import cli; cli.app = lambda **_: 1 / 0; cli.main()"
    done = subprocess.run([sys.executable, "-c", program], env=command[1], capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "bug in Kogata" in done.stderr


def test_an_error_in_code_that_kogata_calls_is_not_called_a_bug_of_kogata(
    command: tuple[list[str], dict[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "theirs.py").write_text("from kogata.methods import KMeans\n\ndef run(**_):\n    raise RuntimeError('boom')\n")
    program = "from kogata import cli; import theirs; cli.app = theirs.run; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", program], env=command[1] | {"PYTHONPATH": f"{command[1]['PYTHONPATH']}:{tmp_path}"},
        capture_output=True, encoding="utf-8", timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"{tmp_path / 'theirs.py'}, line 4 raised it, which is not part of Kogata" in done.stderr


def test_a_closed_pipe_is_quiet(command: tuple[list[str], dict[str, str]]) -> None:
    words, environment = command
    with subprocess.Popen(
        [*words, "methods", "--json"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
