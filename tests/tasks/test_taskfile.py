"""Task files: the example works, and every way a file can be wrong is told with file, function and line."""

import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from torch import nn

from kogata.errors import DataError, UsageError
from kogata.job import Task
from kogata.tasks.taskfile import open_task

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_task.py"

GOOD = """
import torch

def model():
    return torch.nn.Linear(4, 2)

def calibration():
    return [(torch.ones(3, 4), torch.zeros(3))]
"""


def write(folder: Path, text: str) -> str:
    path = folder / "task.py"
    path.write_text(dedent(text))
    return str(path)


def batches(task: Task) -> list[Any]:
    assert not callable(task.calibration)
    return list(task.calibration)


def test_the_example():
    model, task = open_task(str(EXAMPLE), 0, None)
    assert task.name == "my_task"
    assert task.evaluate is not None
    assert task.evaluate(model) > 90
    assert task.validate is not None
    assert task.validate(model) > 90
    assert task.train is not None
    assert task.loss is not None
    inputs, targets = next(iter(task.train))
    assert torch.isfinite(task.loss(model(inputs), targets))


def test_the_least_that_is_needed(tmp_path: Path):
    model, task = open_task(write(tmp_path, GOOD), 0, None)
    assert isinstance(model, nn.Linear)
    assert (task.train, task.loss, task.evaluate, task.validate) == (None, None, None, None)
    assert len(batches(task)) == 1


def test_calibration_may_be_a_function_of_the_model(tmp_path: Path):
    text = GOOD.replace("return [(torch.ones(3, 4), torch.zeros(3))]", "return lambda model: model(torch.ones(3, size))")
    model, task = open_task(write(tmp_path, f"size = 4\n{text}"), 0, None)
    fed: list[torch.Size] = []
    model.register_forward_hook(lambda _, inputs, __: fed.append(inputs[0].shape))
    assert callable(task.calibration)
    task.calibration(model)
    assert fed == [(3, 4)]
    _, task = open_task(write(tmp_path, f"size = 55\n{text}"), 0, None)
    assert callable(task.calibration)
    with pytest.raises(DataError, match=r"task\.py:9: the function that calibration\(\) returned failed with Run"):
        task.calibration(model)


def test_the_seed_decides_random_weights_and_nothing_else(tmp_path: Path):
    path = write(tmp_path, GOOD)

    def weight(seed: int) -> list[float]:
        model, _ = open_task(path, seed, None)
        return model.get_parameter("weight").flatten().tolist()

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert weight(0) == weight(0) != weight(1)
    assert torch.equal(torch.rand(1), expected)


def test_neighbours_can_be_imported_and_the_path_is_restored(tmp_path: Path):
    (tmp_path / "neighbour_of_the_task.py").write_text("import torch\nNET = torch.nn.Linear(1, 1)\n")
    text = GOOD.replace("return torch.nn.Linear(4, 2)", "from neighbour_of_the_task import NET; return NET")
    before = list(sys.path)
    model, _ = open_task(write(tmp_path, text), 0, None)
    assert isinstance(model, nn.Linear)
    assert sys.path == before


def test_a_generator_is_called_for_every_pass(tmp_path: Path):
    text = GOOD.replace("return [(torch.ones(3, 4), torch.zeros(3))]", "yield torch.ones(1, 4); yield torch.ones(2, 4)")
    _, task = open_task(write(tmp_path, text), 0, None)
    assert [len(batch) for batch in batches(task)] == [1, 2]
    assert [len(batch) for batch in batches(task)] == [1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", r"task\.py: no function model\(\)"),
        ("model = 3", r"task\.py: model is a value of type int, expected a function"),
        ("import torch\ndef model(): return torch.nn.Linear(1, 1)", r"task\.py: no function calibration\(\)"),
        ("def model():\n    return None", r"task\.py: model\(\) returned a value of type NoneType, expected a torch"),
        ("def model():\n    return {}['weights']", r"task\.py:2: model\(\) failed with KeyError: 'weights'"),
        ("def model(path): ...", r"task\.py: model\(\) failed with TypeError: .*path"),
        ("import torch\nimport no_such_module", r"task\.py:2: the file itself.* ModuleNotFoundError: .*no_such_module"),
        ("def model(:", r"task\.py:1: the file itself, while it was loaded failed with SyntaxError"),
        ("raise SystemExit(0)", r"task\.py:1: the file itself.* SystemExit"),
        (f"{GOOD}\ndef train(): return 5", r"train\(\) returned a value of type int, expected an iterable of batches"),
        (f"{GOOD}\ndef train(): return []", r"train\(\) gave no batch"),
        (f"{GOOD}\ndef calibration(): return []", r"calibration\(\) gave no batch"),
        (f"{GOOD}\ndef calibration():\n    yield from ()", r"calibration\(\) gave no batch"),
        (f"{GOOD}\ndef calibration():\n    yield 1 / 0", r"task\.py:11: calibration\(\) failed with ZeroDivisionError"),
        (f"{GOOD}\nloss = 'mse'", r"loss is a value of type str, expected a function"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, text: str, message: str):
    with pytest.raises(DataError, match=message):
        open_task(write(tmp_path, text), 0, None)


def test_a_later_failure_is_told_too(tmp_path: Path):
    text = f"""{GOOD}
def loss(output, targets):
    return output

def evaluate(model):
    return model.no_such_thing

def validate(model):
    return "good"
"""
    model, task = open_task(write(tmp_path, text), 0, None)
    assert task.loss is not None
    assert task.evaluate is not None
    assert task.validate is not None
    with pytest.raises(DataError, match=r"loss\(\) returned a tensor of shape \(2, 2\), expected .* one value"):
        task.loss(torch.ones(2, 2), torch.ones(2))
    with pytest.raises(DataError, match=r"task\.py:14: evaluate\(\) failed with AttributeError: .*no_such_thing"):
        task.evaluate(model)
    with pytest.raises(DataError, match=r"validate\(\) returned a value of type str, expected one number"):
        task.validate(model)


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(UsageError, match=r"'fashion-lenet'.* Did you mean fashion-lenet5.*mnist-lenet300.*digits-mlp"):
        open_task("fashion-lenet", 0, None)
    with pytest.raises(UsageError, match=r"'zzz'\. Expected one of"):
        open_task("zzz", 0, None)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"nothing\.py: there is no such file"):
        open_task(str(tmp_path / "nothing.py"), 0, None)
