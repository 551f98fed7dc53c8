"""The geometry of the survey's table 2: AlexNet, VGG-16 and GoogLeNet at its compression rates, in ONNX Runtime.

The table's rates and times are taken as those of the whole nets: convolutions become separable or CP ones, matrices, of linear
layers and of convolutions with a kernel of one place, two factors. The first convolution of a net stays as it is, for it
has hardly a hundredth of the parameters, and factors in front of its stride would work on whole images. Time depends on shapes,
not on numbers: the weights are drawn at random, so accuracy is not claimed. Seconds are for the decomposition of the whole net.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks import harness
from benchmarks.harness import Row
from benchmarks.low_rank_convolutions import at_rate
from kogata import surgery
from kogata.engines import OnnxRuntime
from kogata.engines.latency import interleaved
from kogata.job import Kind
from kogata.method import WeightMethod
from kogata.methods import CP, Separable
from kogata.stats import Stats
from kogata.tasks.networks import alexnet, googlenet, vgg16

MINUTES = 15
SEED = 0
IMAGE = 224


@dataclass(frozen=True)
class Case:
    """One line of the table: rate of the parameters, and the speed-up that it reports."""

    network: Callable[[], nn.Module]
    method: type[WeightMethod]
    rate: float
    bar: float


CASES = {
    "AlexNet, separable": Case(alexnet, Separable, 4.94, 1.09),
    "AlexNet, CP": Case(alexnet, CP, 5.0, 1.82),
    "VGG-16, separable": Case(vgg16, Separable, 2.72, 1.53),
    "VGG-16, CP": Case(vgg16, CP, 2.75, 2.05),
    "GoogLeNet, separable": Case(googlenet, Separable, 2.79, 1.08),
    "GoogLeNet, CP": Case(googlenet, CP, 2.84, 1.20),
}


def rows(name: str, case: Case) -> list[Row]:
    """Decompose, and time beside the dense net."""
    torch.manual_seed(SEED)
    model, image = case.network().eval(), torch.randn(1, 3, IMAGE, IMAGE)
    layers = [site for site in surgery.sites(model) if site.kind in (Kind.CONV, Kind.LINEAR) and len(site.shape) > 1]
    whole = sum(torch.Size(site.shape).numel() for site in layers)
    first = torch.Size(layers[0].shape).numel()
    rate = (whole - first) / (whole / case.rate - first)
    smaller = surgery.clone(model)
    started = time.perf_counter()
    for site in layers[1:]:
        method = at_rate(case.method, site.shape, rate)
        if method is not None:
            weight = surgery.form_at(model, site).dense().detach()
            surgery.attach(smaller, site, method.encode(weight, site, Stats()))
    seconds = time.perf_counter() - started
    kept = sum(surgery.form_at(smaller, site).kept() for site in layers)
    engine = OnnxRuntime()
    sessions = [engine.open_model(net, image) for net in (model, smaller)]
    dense, ours = interleaved([lambda session=session: session(image) for session in sessions])
    return [
        Row(name, "weights", whole / kept, "x fewer"),
        Row(name, "decomposition of the whole net", seconds, "s"),
        Row(name, "time, dense", dense.p50, "ms"),
        Row(name, "time, batch 1", dense.p50 / ours.p50, "x faster", case.bar, ">=", "the survey's table 2"),
    ]


def main() -> int:
    """Every line of the table."""
    return harness.run("table2", [row for name, case in CASES.items() for row in rows(name, case)], [SEED])


if __name__ == "__main__":
    raise SystemExit(main())
