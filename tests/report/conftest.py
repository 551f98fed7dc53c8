"""Reports to render: one like a real run of LeNet-5 (the numbers are invented), and its hard cases."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from kogata.job import Epoch, Step
from kogata.report.data import Latency, Layer, PlaneLine, Report, Side

REST = {"header": 712, "manifest": 1_420, "graph": 2_310, "other tensors": 1_204}


def layer(site: str, kind: str, shape: tuple[int, ...], keep: float, bits: int, ms: tuple[float, float], loss: float) -> Layer:
    """A pruned weight whose kept values index a codebook, with planes of plausible sizes."""
    weights = math.prod(shape)
    kept = round(keep * weights)
    mask = weights * (-keep * math.log2(keep) - (1 - keep) * math.log2(1 - keep)) / 8
    index = 0.93 * kept * bits / 8
    planes = (
        PlaneLine(
            name="mask",
            elements=weights,
            coder="rans",
            bytes=math.ceil(mask) + 9,
            packed_bytes=-(-weights // 8),
            entropy_bytes=mask,
        ),
        PlaneLine(
            name="index",
            elements=kept,
            coder="adaptive",
            bytes=math.ceil(0.985 * index),
            packed_bytes=-(-kept * bits // 8),
            entropy_bytes=index,
        ),
        PlaneLine(
            name="table",
            elements=2**bits,
            coder="raw",
            bytes=2 * 2**bits,
            packed_bytes=2 * 2**bits,
            entropy_bytes=2.0 * 2**bits,
        ),
    )
    return Layer(
        site=site,
        kind=kind,
        shape=shape,
        form="masked(codebook)",
        parameters=kept + 2**bits,
        macs=weights * (576 if site == "conv1.weight" else 64 if site == "conv2.weight" else 1),
        dense_bytes=4 * weights,
        bytes=sum(plane.bytes for plane in planes),
        dense_ms=ms[0],
        ms=ms[1],
        loss=loss,
        planes=planes,
    )


def latency(p50: float) -> Latency:
    return Latency(p50=p50, p90=1.12 * p50, minimum=0.94 * p50, runs=200)


@pytest.fixture
def lenet() -> Report:
    layers = (
        layer("conv1.weight", "conv", (20, 1, 5, 5), 0.66, 6, (0.081, 0.074), 0.0004),
        layer("conv2.weight", "conv", (50, 20, 5, 5), 0.12, 5, (0.212, 0.118), 0.0021),
        layer("fc1.weight", "linear", (500, 800), 0.08, 4, (0.148, 0.031), 0.0013),
        layer("fc2.weight", "linear", (10, 500), 0.19, 5, (0.011, 0.009), -0.0002),
    )
    losses = (0.0411, 0.0352, 0.0318, 0.0301, 0.0297, 0.0294)
    epochs = tuple(
        Epoch(epoch=i + 1, loss=loss, learning_rate=0.01 * 0.7**i, score=98.71 + 0.07 * i) for i, loss in enumerate(losses)
    )
    return Report(
        title="LeNet-5, example numbers",
        task="mnist",
        engine="onnxruntime",
        command="kogata compress --task mnist --recipe deep-compression --seed 0 -o runs/lenet",
        seed=0,
        recipe={"steps": [{"prune": {"ratio": 0.92, "recover": {"epochs": 6}}}, {"share": {"bits": 4, "rounds": 50}}]},
        environment={
            "cpu": "Example CPU @ 2.60GHz",
            "cpu_flags": ["avx", "avx2", "avx512_vnni", "avx512f", "fma"],
            "threads": 1,
            "versions": {"kogata": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.27.0"},
            "date": "2026-11-24",
        },
        dense=Side(bytes=1_724_892, score=99.17, parameters=431_080, latency_ms=latency(0.462)),
        compressed=Side(
            bytes=sum(line.bytes for line in layers) + sum(REST.values()),
            score=99.08,
            parameters=sum(line.parameters for line in layers) + 580,
            latency_ms=latency(0.241),
        ),
        layers=layers,
        rest_bytes=REST,
        steps=(
            Step(
                name="prune",
                settings={"ratio": 0.92, "criterion": "fisher"},
                seconds=3.42,
                bits_before=13_794_560.0,
                bits_after=1_262_100.0,
                loss=0.0463,
            ),
            Step(
                name="recover",
                settings={"epochs": 6},
                seconds=148.0,
                bits_before=1_262_100.0,
                bits_after=1_261_800.0,
                loss=0.0294,
                epochs=epochs,
            ),
            Step(
                name="share",
                settings={"bits": 4, "rounds": 50},
                seconds=6.05,
                bits_before=1_261_800.0,
                bits_after=341_216.0,
                loss=0.0326,
            ),
        ),
        notes=("fc2.bias left dense: 10 values, a codebook would be larger than what it replaces.",),
        targets={"size": "60kB", "drop": "0.05pt"},
        missed=("drop: 0.09 points, over the limit of 0.05 (0.05pt)",),
        delta=0.462 / 0.241,
    )


@pytest.fixture
def bare(lenet: Report) -> Report:
    """Nothing was measured but the bytes."""
    return replace(
        lenet,
        engine=None,
        dense=replace(lenet.dense, score=None, latency_ms=None),
        compressed=replace(lenet.compressed, score=None, latency_ms=None),
        layers=tuple(replace(line, dense_ms=None, ms=None, loss=None, macs=None) for line in lenet.layers),
        steps=(),
        rest_bytes={},
        recipe={},
        environment={},
        notes=(),
        targets={},
        missed=(),
        delta=None,
    )


@pytest.fixture
def empty(bare: Report) -> Report:
    """A model without a layer that could be compressed."""
    return replace(bare, layers=())


@pytest.fixture
def deep(lenet: Report) -> Report:
    """A hundred layers with long names, of growing size."""
    layers = tuple(
        layer(
            f"model.encoder.layers.{i}.self_attention.q_proj.weight",
            "linear",
            (64 + 4 * i, 96),
            0.2,
            4,
            (0.05 + i / 1000, 0.03),
            i / 1e5,
        )
        for i in range(100)
    )
    total = sum(line.bytes for line in layers) + sum(REST.values())
    dense = sum(line.dense_bytes for line in layers) + 40_000
    return replace(
        lenet,
        title="A hundred layers",
        layers=layers,
        dense=replace(lenet.dense, bytes=dense),
        compressed=replace(lenet.compressed, bytes=total),
    )


@pytest.fixture
def slight(lenet: Report) -> Report:
    """Hardly smaller and no faster, with scores that are fractions, and two steps that trained."""
    return replace(
        lenet,
        dense=replace(lenet.dense, score=0.9917),
        compressed=replace(lenet.compressed, score=0.9921, bytes=1_200_000, latency_ms=latency(0.455)),
        delta=0.462 / 0.455,
        steps=(lenet.steps[1], replace(lenet.steps[1], name="recover again")),
        missed=(),
    )


@pytest.fixture
def hostile(lenet: Report) -> Report:
    """Names that try to be code: of the page, of the charts, of the terminal."""
    evil = "<script>console.error('pwned')</script>"
    line = replace(lenet.layers[0], site=evil, form="<img src=x onerror=console.error(1)>")
    other = replace(lenet.layers[1], site='<a href="//x">--ink</a>', form="[red]markup[/red]")
    plane = replace(line.planes[0], name="</script><b>%{x}</b>")
    return replace(
        lenet,
        title=f"{evil} \x1b[31m",
        task='"><svg onload=console.error(1)>',
        command="kogata --x '</code><script>console.error(2)</script>'",
        layers=(replace(line, planes=(plane, *line.planes[1:])), other, *lenet.layers[2:]),
        notes=(evil, "[bold]not markup[/bold] \x1b]0;title\x07", "</script><script>console.error(3)</script>"),
        recipe={evil: evil},
        environment={evil: [evil]},
        missed=(evil,),
        targets={evil: evil},
    )
