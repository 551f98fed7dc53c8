"""Rounding to a budget of bytes, without training: bytes of the whole file against the score, beside GPTQ at fixed bits.

``rate-obs`` gets calibration data only. Every file is written by ``compress``, engine graph and header included, and read back;
scores are on test data. GPTQ rounds to 3 to 6 bits, in groups of 32, 64 or whole rows: twelve files, as many as the budgets
give. Both store vectors in half precision. For each net, the smallest file of each method that loses at most half a point is
compared. Bytes of weights alone, as papers count them, stand beside.

Twelve budgets from 1/4 to 1/60 of the dense file show whether files land within 1 % below them, and whether the predicted loss
orders the files as the measured one does: the divergence (KL) from the dense model on held-out inputs, which the methods do not
see. Score, data and held-out inputs of each net are those of ``half_vectors``.

Finished cases are not repeated: delete ``runs/rate/`` to measure again. The data folder holds ``mnist/``, ``cifar10.tar.xz``
and ``photos/``; EfficientNet-Lite0 needs the packages that ``half_vectors`` names.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

import kogata
from benchmarks import harness
from benchmarks.half_vectors import Subject, built_in, diverged, lite0, log_probabilities
from benchmarks.harness import Row
from kogata.flow import Result
from kogata.job import Where
from kogata.methods import GPTQ, Half
from kogata.methods.base.compose import chain, only

MINUTES = 60
SEED = 0
RUNS = harness.runs("rate")
SHARES = (4, 6, 8, 10, 12, 14, 16, 20, 25, 30, 40, 60)  # budgets: the dense file over these
TWINS = [GPTQ(bits=bits, group=group) for bits in (3, 4, 5, 6) for group in (32, 64, None)]  # as many as SHARES
LOST = 0.5  # points of the score that the smallest file may lose
NETS: Mapping[str, Callable[[Path | None], Subject]] = {
    "cifar-resnet20": partial(built_in, "cifar-resnet20"),
    "mnist-lenet5": partial(built_in, "mnist-lenet5"),
    "fashion-lenet5": partial(built_in, "fashion-lenet5"),
}
SMALL = {"2.7MB": 0.3, "2.2MB": 1.0}  # budgets for EfficientNet-Lite0, and the points that each may lose
SECONDS = 60.0  # for a budget of EfficientNet-Lite0


def budgeted(subject: Subject, size: str) -> Result:
    """The net in a file of ``size``."""
    return kogata.compress(subject.model, subject.task, bytes=size, seed=SEED)


def rounded(subject: Subject, gptq: GPTQ) -> Result:
    """The net with weights rounded by GPTQ, and vectors in half precision as ``budgeted`` has them."""
    return kogata.compress(subject.model, subject.task, chain(gptq, only(Half(), Where(vectors=True))), seed=SEED)


def words(gptq: GPTQ) -> str:
    """The case of a twin."""
    return f"GPTQ {gptq.bits} bits, {'whole rows' if gptq.group is None else f'groups of {gptq.group}'}"


def lost(result: Result) -> float:
    """Points of the score that the file loses."""
    dense, ours = result.report.dense.score, result.report.compressed.score
    assert dense is not None
    assert ours is not None
    return dense - ours


def weight_bytes(result: Result) -> int:
    """Bytes of the matrices alone, as papers count them."""
    return sum(layer.bytes for layer in result.report.layers)


def predicted(result: Result) -> float:
    """The increase of the loss that the method predicts, over all layers."""
    return sum(layer.increase or 0.0 for layer in result.report.layers)


def rows_of_net(net: str, data: Path | None) -> list[Row]:
    """Twelve budgets and twelve twins on one net."""
    subject = NETS[net](data)
    dense_NC = log_probabilities(subject.model, subject.inputs)
    rows, files, told, found = list[Row](), list[tuple[int, float]](), list[float](), list[float]()
    for share in SHARES:
        result = budgeted(subject, f"1/{share}")
        size, limit = result.report.compressed.bytes, result.report.dense.bytes // share
        files.append((size, lost(result)))
        told.append(predicted(result))
        found.append(diverged(dense_NC, log_probabilities(result.model.eval(), subject.inputs)))
        case = f"{net}, 1/{share}"
        rows += [
            Row(case, "file", size, "bytes", limit, "<="),
            Row(case, "of the budget", 100 * size / limit, "%", 99.0, ">="),
            Row(case, "weights alone", weight_bytes(result), "bytes"),
            Row(case, "points lost", lost(result), "points"),
            Row(case, "divergence on held-out inputs", found[-1], "nats", note=f"predicted loss {told[-1]:.3g}"),
        ]  # fmt: skip
    rows += [
        Row(net, "budgets whose divergence grows as they shrink", int((np.diff(found) > 0).sum()), "of 11", 11, ">="),
        Row(net, "rank correlation of predicted loss and divergence", ranks(told, found), "", 0.9, ">="),
    ]
    twins = list[tuple[int, float]]()
    for twin in TWINS:
        result = rounded(subject, twin)
        twins.append((result.report.compressed.bytes, lost(result)))
        case = f"{net}, {words(twin)}"
        rows += [
            Row(case, "file", twins[-1][0], "bytes"), Row(case, "weights alone", weight_bytes(result), "bytes"),
            Row(case, "points lost", twins[-1][1], "points"),
        ]  # fmt: skip
    ours, theirs = (min((size for size, points in each if points <= LOST), default=None) for each in (files, twins))
    if ours is not None and theirs is not None:
        rows.append(Row(net, f"bytes saved over GPTQ at {LOST} points", 100 * (1 - ours / theirs), "%", 35.0, ">="))
    return rows


def rows_of_lite0(data: Path | None) -> list[Row]:
    """EfficientNet-Lite0 with ImageNet weights, at two budgets, and GPTQ at 3 to 5 bits in groups of 64."""
    subject = lite0(data)
    rows = list[Row]()
    for size, points in SMALL.items():
        result = budgeted(subject, size)
        seconds = sum(step.seconds for step in result.report.steps)
        case = f"EfficientNet-Lite0, {size}"
        rows += [
            Row(case, "file", result.report.compressed.bytes, "bytes"),
            Row(case, "weights alone", weight_bytes(result), "bytes"),
            Row(case, "points lost", lost(result), "points", points, "<="),
            Row(case, "time of compression", seconds, "s", SECONDS, "<="),
        ]
    for twin in (GPTQ(bits=bits, group=64) for bits in (3, 4, 5)):
        result = rounded(subject, twin)
        case = f"EfficientNet-Lite0, {words(twin)}"
        rows += [Row(case, "file", result.report.compressed.bytes, "bytes"), Row(case, "points lost", lost(result), "points")]
    return rows


def ranks(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation of two sequences without ties."""
    first, second = (np.argsort(np.argsort(values)) for values in (one, other))
    return float(np.corrcoef(first, second)[0, 1])


CASES: Mapping[str, Callable[[Path | None], list[Row]]] = {
    "lite0": rows_of_lite0,
    **{net: partial(rows_of_net, net) for net in NETS},
}


def main() -> int:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of mnist/, cifar10.tar.xz and photos/; default: $KOGATA_DATA")
    data: Path | None = parser.parse_args().data
    rows = [row for case, rows_of in CASES.items() for row in harness.kept(RUNS / f"{case}.json", partial(rows_of, data))]
    return harness.run("rate", rows, [SEED])


if __name__ == "__main__":
    raise SystemExit(main())
