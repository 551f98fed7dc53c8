"""ONNX graphs with their weights stored in forms: export a graph, remove its weights, and fill them in again.

A graph in a ``.kogata`` file holds no weights. Each initializer that equals a tensor of the file is bound to that tensor: a
weight that a form regenerates, a factor of it that a lowered layer uses, or a buffer such as a running mean. Tensors are
matched by content. Initializers that equal no tensor stay in the graph.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any, cast

import numpy as np
import onnx
import torch
import zstandard
from google.protobuf.message import Message
from onnx import numpy_helper
from torch import Tensor, nn

from kogata.errors import EngineError, FileFormatError
from kogata.forms import Form
from kogata.forms.base import nodes
from kogata.network.nesting import leaves
from kogata.network.sites import buffers_of, form_at, sites_of
from kogata.storage.layout import Artifact, EngineGraph

OPSET = 18
MAX_GRAPH = 256 << 20  # largest decompressed size of a graph without weights, in bytes
SMALL = 16  # smaller initializers, in bytes, take less space in the graph than a binding would


def export(model: nn.Module, inputs: Any) -> onnx.ModelProto:
    """Export a model without forms as ONNX, including its weights, with a dynamic batch size where the model allows it.

    Raises EngineError, with the exporter's reason, when the model cannot be exported.
    """
    if any(tensor.dtype == torch.bfloat16 for tensor in model.state_dict().values()):
        raise EngineError(
            f"onnxruntime: {type(model).__name__} holds bfloat16 weights, which it does not run on a CPU; convert the model "
            "and its inputs with .float() first."
        )
    args = () if isinstance(inputs, Mapping) else tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else None
    free = [_free(value) for value in (kwargs or dict(enumerate(args))).values()]
    names = list(kwargs or ())
    shapes: Any = dict(zip(names, free, strict=True)) if kwargs else tuple(free)
    with _quiet(), _flat_outputs(model):
        try:
            program = _program(model, args, kwargs, shapes)
        except Exception:  # the exporter raises many kinds; retry with a fixed batch size, which reports the reason
            try:
                program = _program(model, args, kwargs, None)
            except Exception as error:
                raise EngineError(
                    f"onnxruntime: {type(model).__name__} cannot be exported to ONNX: {_reason(error)}"
                ) from error
    proto = cast("onnx.ModelProto", program.model_proto)
    _strip_zero_biases(proto.graph)
    _strip_notes(proto)
    return proto


def _reason(error: BaseException) -> str:
    """What the first cause of an error says, in one line: the exporter's own message only names the step that failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split("\n")
    return next((line.strip() for line in lines if line.strip()), type(error).__name__)


def _program(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None, shapes: Any) -> Any:
    return torch.onnx.export(
        model, args, kwargs=kwargs, dynamo=True, opset_version=OPSET, optimize=False, verbose=False, dynamic_shapes=shapes,
    )  # fmt: skip


def _free(value: Any) -> Any:
    return {0: torch.export.Dim.AUTO} if isinstance(value, Tensor) and value.ndim and value.shape[0] > 1 else None


@contextmanager
def _flat_outputs(model: nn.Module) -> Generator[None, None, None]:
    """Let the model return a tuple of its tensors: the exporter knows neither dataclasses nor plain values among outputs.

    An output that holds objects of other classes stays as it is, because tensors may be hidden in them.
    """

    def flat(_: nn.Module, __: Any, output: Any) -> Any:
        parts = list(leaves(output))
        known = all(part is None or isinstance(part, Tensor | bool | int | float | str) for part in parts)
        return tuple(part for part in parts if isinstance(part, Tensor)) if known else output

    handle = model.register_forward_hook(flat)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Suppress the exporter's output on both streams, in logs and in warnings. Errors still carry the reason."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _strip_zero_biases(graph: onnx.GraphProto) -> None:
    """Remove the bias of zeros that the exporter adds to convolutions without a bias.

    It is expanded and cast at run time instead of being an initializer, which would keep ONNX Runtime from using its fast
    channel layout for these convolutions.
    """
    made = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose") and len(node.input) == 3 and _zeros(node.input[2], made):
            del node.input[2]
    used = {output.name for output in graph.output} | {name for node in graph.node for name in _read_within(node)}
    for index in reversed(range(len(graph.node))):  # nodes come after those that they read
        if used.isdisjoint(graph.node[index].output):
            del graph.node[index]
        else:
            used.update(graph.node[index].input)


def _read_within(node: onnx.NodeProto) -> Generator[str]:
    """The names that the subgraphs of a node, such as branches or loop bodies, may read from outside."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from inner.input
                yield from _read_within(inner)
            yield from (output.name for output in graph.output)


def _zeros(name: str, made: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a value is a constant of zeros, possibly cast or expanded."""
    node = made.get(name)
    while node is not None and node.op_type in ("Expand", "Cast", "CastLike"):
        node = made.get(node.input[0])
    if node is None or node.op_type != "Constant" or node.attribute[0].name != "value":
        return False
    return not numpy_helper.to_array(node.attribute[0].t).any()


def _strip_notes(proto: onnx.ModelProto) -> None:
    """Remove source lines, stack traces and shapes of inner values. They take space and contain paths of this machine."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    for node in graph.node:
        node.ClearField("name")
    del graph.value_info[:]
    for field in ("producer_name", "producer_version"):
        proto.ClearField(field)


def bind(proto: onnx.ModelProto, model: nn.Module) -> EngineGraph:
    """The graph without the values of initializers that equal weights or buffers of ``model``. Modifies ``proto``."""
    wanted = {init.name: _digest(numpy_helper.to_array(init)) for init in proto.graph.initializer if _large(init)}
    missing = set(wanted.values())
    places: dict[bytes, tuple[str, str, bool]] = {}
    for site in sites_of(model):
        for path, form in nodes(form_at(model, site)):
            array = _array(form)
            for transposed in (False, True) if array.ndim == 2 else (False,):
                digest = _digest(array.T if transposed else array)
                if digest in missing:
                    places.setdefault(digest, (site.name, path, transposed))
    for name, buffer in buffers_of(model).items():
        if buffer.dtype != torch.bfloat16 and (digest := _digest(buffer.detach().cpu().numpy())) in missing:
            places.setdefault(digest, (name, "", False))
    bindings = {name: places[digest] for name, digest in wanted.items() if digest in places}
    for init in proto.graph.initializer:
        if init.name in bindings:
            init.ClearField("raw_data")
    compressor = zstandard.ZstdCompressor(level=19, write_content_size=True)
    return EngineGraph(data=compressor.compress(proto.SerializeToString(deterministic=True)), bindings=bindings)


def fill(artifact: Artifact) -> onnx.ModelProto:
    """The complete graph of a file, with the weights that the forms of the file regenerate.

    Raises FileFormatError when the file has no graph, a damaged one, or one that reads other files.
    """
    if artifact.graph is None:
        raise FileFormatError(f"{artifact.source}: has no engine graph; load it with the model's class: kogata.load().")
    proto = onnx.ModelProto()
    try:
        size = zstandard.frame_content_size(artifact.graph.data)
        if not 0 <= size <= MAX_GRAPH:
            raise ValueError(f"a graph of {size} bytes")
        proto.ParseFromString(zstandard.ZstdDecompressor().decompress(artifact.graph.data))
        if outside := [tensor.name or "a constant" for tensor in _tensors(proto) if _lies_outside(tensor)]:
            raise ValueError(
                f"it takes {', '.join(outside[:3])} from outside of the file, which could be any file of this machine"
            )
        trees = {names[0]: dict(nodes(form)) for names, form in artifact.forms.items()}
        for init in proto.graph.initializer:
            if init.name in artifact.graph.bindings:
                tensor, path, transposed = artifact.graph.bindings[init.name]
                buffer = artifact.buffers.get(tensor)
                array = _array(trees[tensor][path]) if buffer is None else buffer.numpy()
                array = array.T if transposed else array
                init.raw_data = np.ascontiguousarray(array).tobytes()
                if array.size != math.prod(init.dims):
                    raise ValueError(f"initializer {init.name} has shape {list(init.dims)}, {tensor} {array.shape}")
    except (KeyError, ValueError, zstandard.ZstdError) as error:
        raise FileFormatError(f"{artifact.source}: its engine graph is damaged: {error}.") from None
    except Exception as error:  # protobuf's DecodeError; its implementations define it in different modules
        raise FileFormatError(f"{artifact.source}: its engine graph is not an ONNX model: {error}.") from None
    return proto


def _tensors(message: Message) -> Generator[onnx.TensorProto]:
    """Every tensor anywhere in a graph: initializers, constants, attributes, and those of graphs within it."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in value if isinstance(value, Sequence) else (value,):
            if isinstance(part, onnx.TensorProto):
                yield part
            yield from _tensors(part)


def _lies_outside(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor's values are in another file, or at an address in memory: both are "external data" in ONNX."""
    return tensor.data_location != onnx.TensorProto.DEFAULT or len(tensor.external_data) > 0


def _large(init: onnx.TensorProto) -> bool:
    return len(init.raw_data) >= SMALL


def _array(form: Form) -> np.ndarray:
    return form.dense().detach().cpu().numpy()


def _digest(array: np.ndarray) -> bytes:
    """A digest of the dtype and the values in row-major order.

    The shape does not count, because lowered layers reshape factors.
    """
    return hashlib.sha256(array.dtype.str.encode() + np.ascontiguousarray(array).tobytes()).digest()
