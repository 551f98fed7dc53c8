"""Runs killed at random moments: how many of them, resumed, end with the bytes of a run that nothing stopped.

A small convolutional net is compressed by five recipes: pruning with weight sharing, low rank with second-order rounding,
training with quantized weights, removal of channels, and pruning by training. Each recipe runs once undisturbed. Then its
process is killed (SIGKILL) at a moment drawn uniformly over the duration of that run and started again with --resume, up to
four times in a row, until it ends. The file and the names of all files in the folder are compared with those of the undisturbed
run. Processes are forked from one that has imported everything, so that the kills fall into the run and not into its imports.
"""

import argparse
import contextlib
import multiprocessing
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import Row, run

MINUTES = 10
SEED = 0
KILLS = 200
IN_A_ROW = 4  # kills of one run
IMPORTED = (  # what a run imports when it first needs it
    "kogata.flow", "kogata.cli.compress", "kogata.tasks.taskfile", "kogata.coding.kernels.mask", "kogata.coding.kernels.rans",
    "kogata.coding.kernels.symbols", "kogata.methods.kernels.obq_loops", "kogata.methods.kernels.intervals", "torch._dynamo",
)  # fmt: skip
LONGEST = 600  # seconds until a run counts as stuck

TASK = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

generator = torch.Generator().manual_seed(0)
images = torch.randn(256, 3, 8, 8, generator=generator)
labels = (images.mean((2, 3)) @ torch.randn(3, 4, generator=generator)).argmax(1)


def model():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4),
    )


def calibration():
    return [(images[:64], labels[:64]), (images[64:128], labels[64:128])]


def train():
    return DataLoader(TensorDataset(images, labels), batch_size=32, shuffle=True)


loss = nn.functional.cross_entropy


def validate(net):
    return float((net(images).argmax(1) == labels).float().mean())
"""

RECIPES = {
    "prune and share": """
steps:
  - {method: magnitude, sparsity: 0.8}
  - {method: recover, epochs: 4, learning_rate: 0.01}
  - {method: k-means, clusters: 8}
  - {method: recover, epochs: 4, patience: 2}
""",
    "low rank and gptq": """
steps:
  - {method: svd, rank: 0.5}
  - {method: recover, epochs: 4}
  - {method: gptq, bits: 4}
""",
    "lsq": """
steps:
  - {method: lsq, bits: 3, recover: {epochs: 6}}
""",
    "channels": """
steps:
  - {method: channels, sparsity: 0.3}
  - {method: recover, epochs: 4}
  - {method: round-to-nearest, bits: 8}
""",
    "admm": """
steps:
  - {method: admm, sparsity: 0.8, recover: {epochs: 6}}
  - {method: recover, epochs: 2}
  - {method: k-means, clusters: 8}
""",
}


def compress(arguments: list[str], told: Path) -> None:
    """One command of the program, in a forked process; ``told`` is the file that gets what it prints."""
    from kogata.cli import main

    sys.argv = ["kogata", "compress", *arguments]
    with told.open("w", encoding="utf-8") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        main()


@dataclass
class Trials:
    """The kills of one recipe and what became of its runs."""

    kills: int = 0
    runs: int = 0
    same: int = 0
    left_over: int = 0
    wrong: list[str] = field(default_factory=list[str])


class Subject:
    """One recipe with its task in a folder of its own, and the files of a run that nothing stopped."""

    def __init__(self, name: str, recipe: str, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.task, self.recipe = folder / "net.py", folder / "recipe.yaml"
        self.task.write_text(TASK, encoding="utf-8")
        self.recipe.write_text(recipe, encoding="utf-8")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(IMPORTED))
        self.context = context
        self.go("warm", None)  # compiles what numba keeps
        started = time.perf_counter()
        if not self.go("straight", None):
            raise RuntimeError(f"{name}: the undisturbed run failed: {self.told()}")
        self.seconds = time.perf_counter() - started
        self.bytes, self.files = (folder / "straight" / "model.kogata").read_bytes(), names(folder / "straight")

    def go(self, output: str, killed_after: float | None) -> bool | None:
        """Start or resume a run. True when it ended well, False when it failed, None when it was killed before its end."""
        arguments = [
            str(self.task),
            "--recipe",
            str(self.recipe),
            "-o",
            str(self.folder / output),
            "--engine",
            "none",
            "--resume",
        ]
        process = self.context.Process(target=compress, args=(arguments, self.folder / "told.txt"))
        process.start()
        process.join(LONGEST if killed_after is None else killed_after)
        if process.exitcode is not None:
            return process.exitcode == 0
        process.kill()
        process.join()
        return None

    def told(self) -> str:
        """The last lines that the program printed."""
        return " ".join((self.folder / "told.txt").read_text(encoding="utf-8").splitlines()[-3:])

    def killed(self, kills: int, generator: random.Random) -> Trials:
        """Kill runs until there have been so many kills; each run is resumed to its end."""
        trials = Trials()
        while trials.kills < kills:
            output = f"killed-{trials.runs}"
            ended, moments = None, list[float]()
            for _ in range(min(IN_A_ROW, kills - trials.kills)):
                moments.append(generator.uniform(0, self.seconds))
                ended = self.go(output, moments[-1])
                if ended is not None:
                    break
                trials.kills += 1
            if ended is None:
                ended = self.go(output, None)
            self._judge(trials, output, ended is True, moments)
        return trials

    def _judge(self, trials: Trials, output: str, well: bool, moments: list[float]) -> None:
        trials.runs += 1
        place = self.folder / output
        same = well and (place / "model.kogata").read_bytes() == self.bytes
        trials.same += same
        trials.left_over += len(names(place) ^ self.files) if well else 0
        if not same:
            at = ", ".join(f"{moment:.3f}" for moment in moments)
            trials.wrong.append(f"killed after {at} s: {'other bytes' if well else self.told()}")


def names(folder: Path) -> set[str]:
    """The names of all files and folders of a run."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def rows(kills: int, seed: int) -> list[Row]:
    """The rows of every recipe."""
    found, generator = list[Row](), random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        for number, (name, recipe) in enumerate(RECIPES.items()):
            share = kills // len(RECIPES) + (number < kills % len(RECIPES))
            trials = Subject(name, recipe, Path(folder, f"recipe-{number}")).killed(share, generator)
            same = 100 * trials.same / max(trials.runs, 1)
            note = "; ".join([f"{trials.runs} runs", *trials.wrong])
            found += [
                Row(name, "kills", trials.kills, ""),
                Row(name, "runs with the same bytes", same, "%", 100, ">=", note=note),
                Row(name, "files left over or missing", trials.left_over, "", 0, "<="),
            ]
    return found


def main() -> None:
    """Print and store all rows; the exit status is 1 if a bar does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=KILLS, help=f"kills over all recipes (default: {KILLS})")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the moments")
    asked = parser.parse_args()
    raise SystemExit(run("kills", rows(asked.kills, asked.seed), [asked.seed]))


if __name__ == "__main__":
    main()
