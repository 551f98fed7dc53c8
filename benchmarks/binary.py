"""Binary, ternary and 2-bit weights on CIFAR-10: error and file bytes of each method, from one dense net, in equal epochs.

The net is ``cifar-vgg-small``: six convolutions, narrow enough to be trained on two cores. All methods start from the same
trained dense net and train for the same number of epochs, on labels alone; so does the dense net, for comparison. The first
convolution and the classifier stay dense, as in the papers. Errors are those of the model reloaded from its file, on the 10,000
test images; bytes are those of the file. Some copies of the data set hold images that were JPEG-compressed again, so compare
errors with the dense row, not with published ones.

An interrupted run resumes, and a finished one is not repeated: delete ``runs/binary/`` to measure again. One argument names the
only method to run, so that several can run side by side.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

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
RUNS = harness.runs("binary")
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
    """The report of one method, which is trained unless it has a report already."""
    folder = Folder(RUNS / name.lower().replace(", ", "-").replace(" ", "-"))
    if folder.finished:
        return Report.load(folder.report)
    model, task = open_task(TASK, SEED, None)
    method = METHODS[name]
    inner = Where(kinds=(Kind.CONV,), ignore=("0",))  # not the first convolution, nor the classifier
    step = method if isinstance(method, Recover) else only(method, inner)
    return compress(model, task, step, output=folder.path, seed=SEED, engine=None, resume=folder.path.exists()).report


def main() -> int:
    """Run every method, or only the one named as argument."""
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
