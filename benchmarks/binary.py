"""Binary, ternary and 2-bit weights on CIFAR-10: error and file bytes of every method, from one dense net, with one budget.

The net is ``cifar-vgg-small``: six convolutions at a width that two cores can train, whatever the machine. All methods, and the
dense net itself, go on from the same trained dense net for the same epochs on labels alone; the first convolution and the
classifier stay dense, as in the papers. Errors are of the model read back from its file, on the 10,000 test images, and bytes
are those of the file. Training images are JPEG-coded again in some copies of the data set, so compare with the dense row.

A run that was interrupted goes on, and a finished one is not repeated: delete ``runs/binary/`` to measure anew. One argument
names the only method to run, so that several can run side by side.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import Row
from kogata import only
from kogata.flow import compress
from kogata.job import Kind, Where
from kogata.methods import LAB, LSQ, BinaryConnect, BinaryNet, Recover, Ternary, XNORNet
from kogata.methods.base.method import Method
from kogata.report.data import Report
from kogata.storage.folder import Folder
from kogata.tasks.taskfile import open_task

MINUTES = 80
SEED = 0
TASK = "cifar-vgg-small"
RUNS = Path(__file__).parent.parent / "runs" / "binary"
TRAINING = Recover(epochs=8, learning_rate=2e-3, distill=0.0)

METHODS: Mapping[str, Method] = {
    "dense": TRAINING,
    "BinaryConnect": BinaryConnect(recover=TRAINING),
    "LAB": LAB(recover=TRAINING),
    "XNOR-Net": XNORNet(recover=TRAINING),
    "BinaryNet": BinaryNet(recover=TRAINING),
    "ternary": Ternary(recover=TRAINING),
    "LSQ, 2-bit weights": LSQ(bits=2, recover=TRAINING),
    "LSQ, 2-bit weights and activations": LSQ(bits=2, activations=2, recover=TRAINING),
}


def trained(name: str) -> Report:
    """The report of one method's run."""
    folder = Folder(RUNS / name.lower().replace(", ", "-").replace(" ", "-"))
    if folder.finished:
        return Report.load(folder.report)
    model, task = open_task(TASK, SEED, None)
    method = METHODS[name]
    inner = Where(kinds=(Kind.CONV,), ignore=("0",))  # not the first convolution, nor the classifier
    step = method if isinstance(method, Recover) else only(method, inner)
    return compress(model, task, step, output=folder.path, seed=SEED, engine=None, resume=folder.path.exists()).report


def main() -> int:
    """Every method, or only the one that is named."""
    if len(sys.argv) > 1:
        trained(sys.argv[1])
        return 0
    reports = {name: trained(name) for name in METHODS}
    errors = {name: round(100 - (report.compressed.score or 0), 6) for name, report in reports.items()}
    bars = {
        "LAB": (errors["BinaryConnect"], "no worse than BinaryConnect"),
        "LSQ, 2-bit weights": (round(errors["dense"] + 1, 6), "within 1 point of dense"),
    }
    rows: list[Row] = []
    for name, report in reports.items():
        bar, note = bars.get(name, (None, ""))
        rows += [
            Row(name, "test error", errors[name], "%", bar, None if bar is None else "<=", note),
            Row(name, "file", report.compressed.bytes, "bytes"),
        ]
    return harness.run("binary", rows, [SEED])


if __name__ == "__main__":
    raise SystemExit(main())
