"""Every result leaves PyTorch: torch.export, ONNX, and the file's own graph give what the eager model gives."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper

import kogata
from kogata.engines import ONNXRUNTIME, onnx_graph
from kogata.engines.lowering.lower import lower
from kogata.engines.onnxruntime import OnnxSession
from kogata.job import Job
from kogata.methods import METHODS, SVD, KMeans, MagnitudePruning, RoundToNearest, Shallower
from kogata.methods.base.compose import chain, only
from kogata.methods.base.method import Method
from kogata.network import surgery
from kogata.network.batch import call, evaluating
from kogata.storage.write import pack, write_file
from kogata.testing.comparisons import assert_near, batch_of, output
from kogata.testing.models import job_of
from tests.contract.subjects import applied

# One chain that leaves every form somewhere in each of the models.
MIXED = chain(
    only(SVD(rank=0.25), "[hdeo]*.weight"), MagnitudePruning(sparsity=0.3), only(RoundToNearest(bits=6), "out"),
    only(KMeans(clusters=16), "[hdec]*.weight"),
)  # fmt: skip

TIED = chain(SVD(rank=0.25), MagnitudePruning(sparsity=0.3), KMeans(clusters=16))


GRAPHS: dict[str, onnx.ModelProto] = {}  # one for each list of plain layers, for an export takes seconds


def exported(job: Job) -> onnx.ModelProto:
    """The lowered model as ONNX. Models that are lowered to the same plain layers have the same graph with other numbers."""
    lowered, inputs = lower(job.model, ONNXRUNTIME).eval(), batch_of(job)[0]
    values = {name: tensor.numpy() for name, tensor in lowered.state_dict().items()}
    layers = f"{lowered} {[(name, array.shape, array.dtype) for name, array in values.items()]}"
    if layers not in GRAPHS:
        GRAPHS[layers] = onnx_graph.export(lowered, inputs)
    proto = onnx.ModelProto()
    proto.CopyFrom(GRAPHS[layers])
    for initializer in proto.graph.initializer:
        if initializer.name in values:
            initializer.CopyFrom(numpy_helper.from_array(values[initializer.name], initializer.name))
    return proto


def run_from_file(job: Job, proto: onnx.ModelProto, folder: Path) -> Any:
    """The outputs of the file alone, without the model's class."""
    path = folder / "model.kogata"
    write_file(path, pack(job.model, onnx_graph.bind(proto, job.model)))
    return call(kogata.open(path), batch_of(job)[0])


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_exports(kind: type[Method], tmp_path: Path) -> None:
    job = applied(kind, "stack" if kind is Shallower else "conv")
    wanted, inputs = output(job, job.model), batch_of(job)[0]
    program = torch.export.export(surgery.clone(job.model, share=False).eval(), (inputs,))
    assert_near(program.module()(inputs).detach(), wanted, 1e-4)
    proto = exported(job)
    assert_near(OnnxSession(proto)(inputs), wanted, 1e-4)
    assert_near(run_from_file(job, proto, tmp_path), wanted, 1e-4)


@pytest.mark.parametrize("name", ["conv", "subclass", "attention", "embedding", "tied"])
def test_every_model_exports(name: str, tmp_path: Path) -> None:
    job = (TIED if name == "tied" else MIXED).apply(job_of(name))
    assert_near(run_from_file(job, exported(job), tmp_path), output(job, job.model), 1e-4)


def test_half_precision_model_exports(tmp_path: Path) -> None:
    job = MIXED.apply(job_of("float16"))
    assert_near(run_from_file(job, exported(job), tmp_path), output(job, job.model), 2e-2)


def test_the_graph_in_the_file_holds_no_weights() -> None:
    job = MIXED.apply(job_of("conv"))
    proto = exported(job)
    graph = onnx_graph.bind(proto, job.model)
    left = [init.name for init in proto.graph.initializer if len(init.raw_data) >= onnx_graph.SMALL]
    folded = [name for name in left if name not in graph.bindings]
    sizes = {init.name: len(init.raw_data) for init in proto.graph.initializer}
    assert graph.bindings
    assert sum(sizes[name] for name in folded) <= 4 * 16 * 4  # no more than the four vectors of the batch normalization


def test_lowering_makes_the_graph_cheaper() -> None:
    job = job_of("conv")
    low = SVD(rank=2).apply(job)

    def held(proto: onnx.ModelProto) -> int:
        return sum(math.prod(init.dims) for init in proto.graph.initializer if len(init.dims) >= 2)

    assert held(exported(low)) < held(exported(job)) / 4


def test_batch_size_is_free() -> None:
    job = SVD(rank=0.25).apply(job_of("conv"))
    session = OnnxSession(exported(job))
    images = torch.randn(5, 3, 8, 8)
    with evaluating(job.model):
        assert_near(session(images), job.model(images), 1e-4)
