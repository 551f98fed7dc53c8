"""The shapes of the survey's table 2: AlexNet, VGG-16 and GoogLeNet at its compression rates, in ONNX Runtime.

The rates and times of the table are taken as those of the whole nets. Convolutions become separable or CP convolutions; linear
layers and 1×1 convolutions become two factors. All layers are compressed at one rate, with ranks rounded to the nearest
multiple of 16: ONNX Runtime computes on 16 channels at a time, and leaves this layout for depthwise filters on other numbers of
channels. A layer that does not become smaller is kept. So is the first convolution of a net, which has hardly 1 % of the
parameters, and whose factors in front of its stride would run on full-size images. Time depends on shapes, not on values; the
weights are random, so no accuracy is claimed. Seconds are those of decomposing the whole net.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks import harness
from benchmarks.harness import Row
from kogata.calibration.stats import Stats
from kogata.engines import OnnxRuntime
from kogata.job import Kind, Site
from kogata.measure.latency import interleaved
from kogata.methods import CP, SVD, Separable
from kogata.network import surgery
from kogata.network.sites import form_at, sites_of
from kogata.tasks.networks import alexnet, googlenet, vgg16

MINUTES = 15
SEED = 0
IMAGE = 224
CHANNELS = 16  # channels that ONNX Runtime computes on at a time
STEPS = 40  # bisection steps of the search for a rate


@dataclass(frozen=True)
class Case:
    """One line of the table: the compression rate of the parameters and the reported speed-up."""

    network: Callable[[], nn.Module]
    method: type[Separable | CP]
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


def of_a_rank(method: type[Separable | CP], shape: Sequence[int]) -> int:
    """The numbers that one unit of rank adds to a layer: in two factors of a matrix, or in the factors of the method."""
    outputs, inputs, *kernel = shape
    if math.prod(kernel) == 1:
        return outputs + inputs
    return sum(shape) if method is CP else inputs * kernel[0] + outputs * kernel[1]


def ranks(method: type[Separable | CP], layers: Sequence[Site], rate: float) -> dict[str, int]:
    """The rank of each layer that becomes smaller, by name."""
    found: dict[str, int] = {}
    for site in layers:
        size, each = math.prod(site.shape), of_a_rank(method, site.shape)
        rank = CHANNELS * round(size / rate / each / CHANNELS)
        if 0 < rank * each < size:
            found[site.name] = rank
    return found


def kept(method: type[Separable | CP], layers: Sequence[Site], found: Mapping[str, int]) -> int:
    """The number of parameters of all layers with these ranks."""
    return sum(
        found[site.name] * of_a_rank(method, site.shape) if site.name in found else math.prod(site.shape) for site in layers
    )


def at_rate(case: Case, layers: Sequence[Site]) -> dict[str, int]:
    """The ranks at the lowest rate per layer for which all layers together reach the rate of the case."""
    whole, low, high = kept(case.method, layers, {}), 1.0, 4 * case.rate
    for _ in range(STEPS):
        middle = (low + high) / 2
        if whole >= case.rate * kept(case.method, layers, ranks(case.method, layers[1:], middle)):
            high = middle
        else:
            low = middle
    return ranks(case.method, layers[1:], high)


def rows(name: str, case: Case) -> list[Row]:
    """Decompose the net, and time it alternately with the dense net."""
    torch.manual_seed(SEED)
    model, image = case.network().eval(), torch.randn(1, 3, IMAGE, IMAGE)
    layers = [site for site in sites_of(model) if site.kind in (Kind.CONV, Kind.LINEAR) and len(site.shape) > 1]
    found = at_rate(case, layers)
    smaller = surgery.clone(model)
    started = time.perf_counter()
    for site in layers:
        if site.name in found:
            method = SVD if math.prod(site.shape[2:]) == 1 else case.method
            weight = form_at(model, site).dense().detach()
            surgery.attach(smaller, site, method(rank=found[site.name]).encode(weight, site, Stats()))
    seconds = time.perf_counter() - started
    numbers = sum(form_at(smaller, site).kept() for site in layers)
    engine = OnnxRuntime()
    sessions = [engine.open_model(net, image) for net in (model, smaller)]
    turns = interleaved([lambda session=session: session(image) for session in sessions])
    return [
        Row(name, "weights", kept(case.method, layers, {}) / numbers, "x fewer"),
        Row(name, "decomposition of the whole net", seconds, "s"),
        Row(name, "time, dense", turns.latency(0).p50, "ms"),
        Row(name, "time, batch 1", turns.speedup(0, 1), "x faster", case.bar, ">=", "the survey's table 2"),
    ]


def main() -> int:
    """Run every line of the table."""
    return harness.run("table2", [row for name, case in CASES.items() for row in rows(name, case)], [SEED])


if __name__ == "__main__":
    raise SystemExit(main())
