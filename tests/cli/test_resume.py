"""A run that is interrupted, then killed, goes on and ends with the same bytes."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

TASK = """
import time
import torch
from torch import nn

def model():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

def calibration():
    return [torch.randn(64, 64)]

def train():
    for _ in range(3):
        time.sleep(0.1)
        yield torch.randn(64, 64), torch.randint(10, (64,))

def loss(output, targets):
    return nn.functional.cross_entropy(output, targets)
"""
RECIPE = """
steps:
  - {method: magnitude, sparsity: 0.9}
  - {method: recover, epochs: 4}
  - {method: k-means, clusters: 4}
  - {method: recover, epochs: 4}
"""


def stop(command: tuple[list[str], dict[str, str]], arguments: list[str], log: Path, awaited: str, how: signal.Signals) -> str:
    """Start the program, stop it once its log says ``awaited``, and return what it wrote on stderr."""
    words, environment = command

    def ready() -> bool:
        return log.exists() and awaited in log.read_text(encoding="utf-8")

    with subprocess.Popen(
        [*words, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        for _ in range(6000):
            if ready() or process.poll() is not None:
                break
            time.sleep(0.01)
        assert ready(), f"the log never said {awaited!r}"
        assert process.poll() is None, "the run was over before it could be stopped"
        process.send_signal(how)
        told = process.communicate(timeout=60)[1]
        assert process.returncode == (130 if how is signal.SIGINT else -signal.SIGKILL)
        return told


def test_a_stopped_run_goes_on_to_the_same_bytes(
    command: tuple[list[str], dict[str, str]], kogata: Callable[..., object], tmp_path: Path
) -> None:
    task, recipe = tmp_path / "slow.py", tmp_path / "recipe.yaml"
    task.write_text(TASK, encoding="utf-8")
    recipe.write_text(RECIPE, encoding="utf-8")
    arguments = ["compress", str(task), "--recipe", str(recipe), "--engine", "none", "-o"]
    kogata(*arguments, tmp_path / "straight")
    stopped = tmp_path / "stopped"
    log = stopped / "log.jsonl"
    told = stop(command, [*arguments, str(stopped)], log, "epoch 2 of 4", signal.SIGINT)
    assert "--resume" in told
    again = [*arguments, str(stopped), "--resume"]
    stop(command, again, log, "step 4 of 4", signal.SIGKILL)
    kogata(*again)
    assert (stopped / "model.kogata").read_bytes() == (tmp_path / "straight" / "model.kogata").read_bytes()
    told = log.read_text(encoding="utf-8")
    assert "resumed after epoch" in told
    assert "resumed after step 3" in told
