"""Which channels are the same: labels that travel through the graph of ``torch.export``.

Every value has at most one axis of channels, with one label for each entry. The rules below say what an operation does to
labels; what has no rule forbids the channels it meets to be removed.
"""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg

from kogata.errors import NotApplicable
from kogata.network import layers, surgery
from kogata.network.batch import evaluating, tensors
from kogata.network.sharing import place_of

# Element by element, but without PyTorch's tag that says so.
_ALIKE = frozenset({
    "alias", "alpha_dropout", "clone", "contiguous", "detach", "dropout", "feature_dropout", "hardswish", "log_sigmoid", "to",
})  # fmt: skip
_MOVES = frozenset({
    "cat", "chunk", "expand", "expand_as", "flatten", "movedim", "narrow", "permute", "reshape", "select", "slice", "split",
    "split_with_sizes", "squeeze", "stack", "swapaxes", "t", "transpose", "unbind", "unflatten", "unsqueeze", "view",
})  # fmt: skip
_REDUCTIONS = frozenset({"amax", "amin", "mean", "std", "sum", "var"})
_SPATIAL = {f"{kind}{rank}d": rank for rank in (1, 2, 3) for kind in (
    "max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool", "upsample_nearest", "_upsample_nearest_exact",
)} | {"upsample_linear1d": 1, "upsample_bilinear2d": 2, "upsample_bicubic2d": 2, "upsample_trilinear3d": 3}  # fmt: skip
_CONVOLUTIONS = {f"conv{kind}{rank}d": rank for rank in (1, 2, 3) for kind in ("", "_transpose")}

Key = tuple[str, int]
"""A tensor's qualified name and one of its axes."""


class Ties:
    """Labels, those that are equal, and those that must stay."""

    def __init__(self) -> None:
        self.axes: dict[Key, Tensor] = {}  # labels of the entries along an axis, int64
        self.makes: set[Key] = set()  # axes whose entries make a channel each
        self.reads: set[Key] = set()  # axes that multiply channels
        self._parent: list[int] = []
        self._reasons: dict[int, str] = {}
        self._met: dict[int, set[str]] = {}

    def fresh(self, count: int) -> Tensor:
        """Labels that are equal to none before."""
        start = len(self._parent)
        self._parent += range(start, start + count)
        return torch.arange(start, start + count)

    def find(self, label: int) -> int:
        """The label that stands for all labels equal to this one."""
        while self._parent[label] != label:
            self._parent[label] = label = self._parent[self._parent[label]]
        return label

    def tie(self, one: Tensor, other: Tensor) -> None:
        """Make two rows of labels equal, entry by entry."""
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            root, child = self.find(a), self.find(b)
            if root == child:
                continue
            self._parent[child] = root
            self._met.setdefault(root, set()).update(self._met.pop(child, ()))
            if (reason := self._reasons.pop(child, "")) and root not in self._reasons:
                self._reasons[root] = reason

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Forbid to remove these; the first reason is kept."""
        for label in set(labels.tolist()):
            self._reasons.setdefault(self.find(label), reason)

    def reason(self, label: int) -> str:
        """Why the label must stay; empty where it may go."""
        return self._reasons.get(self.find(label), "")

    def meet(self, labels: Tensor, operation: str) -> None:
        """Note an operation that these pass through."""
        for label in labels.tolist():
            self._met.setdefault(self.find(label), set()).add(operation)

    def met(self, label: int) -> frozenset[str]:
        """The operations that a label and its equals pass through."""
        return frozenset(self._met.get(self.find(label), ()))


def trace(model: nn.Module, inputs: Any) -> Ties:
    """The labels of ``model`` on these inputs, in evaluation mode.

    A weight that holds a form is traced as one dense tensor without labels: nothing in a form can shrink, and operations that
    rebuild the weight would only make the graph larger. Raises NotApplicable when ``torch.export`` cannot trace the model.
    """
    args = () if isinstance(inputs, Mapping) else tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    kwargs = dict(cast("Mapping[str, Any]", inputs)) if isinstance(inputs, Mapping) else None
    # Layers of transformers have a fused path, which would be one unknown operation.
    fused, silent = torch.backends.mha.get_fastpath_enabled(), logging.root.manager.disable
    torch.backends.mha.set_fastpath_enabled(False)
    logging.disable(logging.ERROR)  # the tracer logs what it also raises
    try:
        with warnings.catch_warnings(), evaluating(surgery.plain(model)) as twin:
            warnings.simplefilter("ignore")
            program = torch.export.export(_Tensors(twin).eval(), args, kwargs)
    except Exception as error:  # whatever the user's forward or the tracer raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotApplicable(f"channels of {type(model).__name__} cannot be followed: torch.export fails: {reason}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        logging.disable(silent)
    return _Tracer(program, model).run()


class _Tensors(nn.Module):
    """Gives the float tensors of a model's output alone: the others may be of types that the tracer does not know."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return tuple(tensors(self.model(*args, **kwargs)))


@dataclass(frozen=True, eq=False)
class _Value:
    """A tensor of the graph: its shape, and where it has channels, their axis and one label for each."""

    shape: tuple[int, ...]
    axis: int | None = None
    labels: Tensor | None = None

    def full(self, labels: Tensor) -> Tensor:
        """A label for every entry of the tensor; ``labels`` are the value's, or a single one."""
        view = [1] * len(self.shape)
        if self.axis is not None:
            view[self.axis] = -1
        return labels.reshape(view).expand(self.shape).contiguous()


class _Tracer:
    """Walks through one graph."""

    def __init__(self, program: ExportedProgram, model: nn.Module) -> None:
        self.ties, self.graph, self.model = Ties(), program.graph, model
        self.values: dict[Node, Any] = {}
        self.rules: dict[str, Callable[[Node, str, dict[str, Any]], Any]] = {
            "linear": self._linear, "embedding": self._embedding, "batch_norm": self._norm, "instance_norm": self._norm,
            "pad": self._pad, "constant_pad_nd": self._pad,
        } | dict.fromkeys(_CONVOLUTIONS, self._convolution) | dict.fromkeys(_SPATIAL, self._pool) | dict.fromkeys(
            _REDUCTIONS, self._reduce
        ) | dict.fromkeys(_MOVES, self._move) | dict.fromkeys(_ALIKE, self._pointwise)  # fmt: skip
        signature = program.graph_signature
        own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
        first: dict[Hashable, str] = {}  # tied parameters have several names
        self.names: dict[str, str] = {}  # only of the model's own tensors, not of those that forms compute
        for node, name in (*signature.inputs_to_parameters.items(), *signature.inputs_to_buffers.items()):
            name = name.removeprefix("model.")  # of the module around it
            if name in own:
                self.names[node] = first.setdefault(place_of(own[name]), name)

    def run(self) -> Ties:
        for node in self.graph.nodes:
            if node.op == "output":
                self._freeze(node.all_input_nodes, "its outputs are the model's")
            elif node.op == "call_function":
                self.values[node] = self._step(node)
            else:
                self.values[node] = _plain(node.meta.get("val"))
        return self.ties

    def _step(self, node: Node) -> Any:
        """The value of one node, once its rule is applied."""
        if node.target is operator.getitem:
            return self.values[cast("Node", node.args[0])][cast("int", node.args[1])]
        schema = getattr(node.target, "_schema", None)
        name = str(schema.name).rpartition("::")[2].rstrip("_") if schema is not None else str(node.target)
        if name.startswith("_assert"):
            return None
        rule = self.rules.get(name)
        if rule is None:
            tags = cast("Sequence[Any]", getattr(node.target, "tags", ()))
            rule = self._pointwise if torch.Tag.pointwise in tags else self._unknown
        return rule(node, name, _arguments(node, schema))

    def _linear(self, node: Node, name: str, given: dict[str, Any]) -> Any:
        x = self._value(given["input"])
        return self._layer(node, given, x, len(x.shape) - 1, reads=1, makes=0)

    def _convolution(self, node: Node, name: str, given: dict[str, Any]) -> Any:
        x, weight = self._value(given["input"]), given["weight"]
        axis = len(x.shape) - 1 - _CONVOLUTIONS[name]
        if given["groups"] == 1:
            makes = int("transpose" in name)
            return self._layer(node, given, x, axis, reads=1 - makes, makes=makes)
        labels = self._labels(weight, 0)  # None unless it is depthwise
        if labels is None:
            return self._unknown(node, name, given)
        self._tie(x, axis, labels, each=len(labels) // given["groups"])
        return self._output(node, given, axis, labels)

    def _layer(self, node: Node, given: dict[str, Any], x: _Value, axis: int, *, reads: int, makes: int) -> Any:
        """A weight whose axis ``reads`` multiplies the channels of ``x`` and whose axis ``makes`` makes new ones."""
        weight = cast("Node", given["weight"])
        columns, rows = self._labels(weight, reads), self._labels(weight, makes)
        if columns is None:
            self._freeze(node.all_input_nodes, "a weight that reads its channels is no plain parameter of a known layer")
            return _plain(node.meta["val"])
        self.ties.reads.add((self.names[weight.name], reads))
        self._tie(x, axis, columns)
        if rows is None:  # such as those of an embedding that the weight is tied to
            self._freeze([given["bias"]] if given["bias"] is not None else [], "the rows of its weight must stay")
            return _plain(node.meta["val"])
        self.ties.makes.add((self.names[weight.name], makes))
        return self._output(node, given, axis, rows)

    def _output(self, node: Node, given: dict[str, Any], axis: int, labels: Tensor) -> _Value:
        """What a layer makes, its bias tied to it."""
        if given["bias"] is not None:
            bias = self._labels(given["bias"], 0)
            if bias is None:
                self.ties.freeze(labels, "its bias is no plain parameter of a known layer")
            else:
                self.ties.tie(labels, bias)
        return _Value(_shape(node), axis, labels)

    def _embedding(self, node: Node, name: str, given: dict[str, Any]) -> Any:
        labels = self._labels(given["weight"], 1)
        if labels is None:
            return self._unknown(node, name, given)
        self.ties.makes.add((self.names[given["weight"].name], 1))
        return _Value(_shape(node), len(_shape(node)) - 1, labels)

    def _norm(self, node: Node, name: str, given: dict[str, Any]) -> Any:
        """Normalizes each channel by itself."""
        x = self._value(given["input"])
        for vector in (given[key] for key in ("weight", "bias", "running_mean", "running_var") if given[key] is not None):
            labels = self._labels(vector, 0)
            if labels is not None:
                self._tie(x, 1, labels)
            else:
                self._freeze([given["input"]], f"a vector of {name} is no plain parameter of a known layer")
        return self._met(x, name)

    def _pool(self, node: Node, name: str, given: dict[str, Any]) -> Any:
        return self._kept(node, name, given, _SPATIAL[name])

    def _pad(self, node: Node, name: str, given: dict[str, Any]) -> Any:
        return self._kept(node, name, given, len(given["pad"]) // 2)

    def _kept(self, node: Node, name: str, given: dict[str, Any], rank: int) -> Any:
        """Works on the last ``rank`` axes."""
        x = self._value(given["input" if "input" in given else "self"])
        if x.axis is not None and x.axis >= len(x.shape) - rank:
            return self._unknown(node, name, given)
        return self._met(_Value(_shape(node), x.axis, x.labels), name)

    def _reduce(self, node: Node, name: str, given: dict[str, Any]) -> Any:
        x, dims = self._value(given["self"]), given.get("dim")
        if x.axis is None:
            return _plain(node.meta["val"])
        gone = {d % len(x.shape) for d in ((dims,) if isinstance(dims, int) else dims or range(len(x.shape)))}
        if x.axis in gone:
            return self._unknown(node, name, given)
        axis = x.axis if given["keepdim"] else x.axis - sum(d < x.axis for d in gone)
        return self._met(_Value(_shape(node), axis, x.labels), name)

    def _move(self, node: Node, name: str, given: dict[str, Any]) -> Any:
        """Moves entries: the operation itself, on labels."""
        operands = {part: self._value(part) for part in node.all_input_nodes}
        if all(x.labels is None for x in operands.values()):
            return _plain(node.meta["val"])
        sizes = [size for x in operands.values() for size in x.shape]
        if not all(isinstance(part.meta["val"], Tensor) for part in operands) or not all(type(size) is int for size in sizes):
            return self._unknown(node, name, given)  # sizes that depend on the data, such as how many inputs an expert gets
        full: dict[Node, Tensor] = {}
        for part, x in operands.items():
            labels = x.labels
            if labels is None:
                labels = self.ties.fresh(1)
                self.ties.freeze(labels, "its channels lie beside values that no layer made")
            full[part] = x.full(labels)
        moved = cast("Any", node.target)(*map_arg(node.args, full.__getitem__), **map_arg(node.kwargs, full.__getitem__))
        found = [_compress(part) for part in (moved if isinstance(moved, tuple | list) else [moved])]
        before = torch.cat([labels.unique() for labels in full.values()]).unique()
        if any(x is None or not torch.equal(cast("Tensor", x.labels).unique(), before) for x in found):
            return self._unknown(node, name, given)
        values = tuple(self._met(cast("_Value", x), name) for x in found)
        return values if isinstance(moved, tuple | list) else values[0]

    def _pointwise(self, node: Node, name: str, given: dict[str, Any]) -> Any:
        """Element by element, with broadcasting."""
        shape = _shape(node)
        operands = [self._value(part) for part in node.all_input_nodes]
        labelled = [(x.axis - len(x.shape), x) for x in operands if x.axis is not None and x.labels is not None]
        # An operand with a single channel is repeated along those of the others: it has to stay one.
        wide = [(axis, x) for axis, x in labelled if x.shape[axis] == shape[axis]]
        if not wide or len({axis for axis, _ in wide}) > 1:
            return self._unknown(node, name, given)
        axis, first = wide[0]
        for x in operands:
            size = x.shape[axis] if len(x.shape) >= -axis else 1
            if x.axis is not None and x.labels is not None and x.axis - len(x.shape) == axis and size == shape[axis]:
                self.ties.tie(cast("Tensor", first.labels), x.labels)
            elif x.labels is not None:
                self.ties.freeze(x.labels, f"{name} repeats its single channel")
            elif size != 1:
                self.ties.freeze(cast("Tensor", first.labels), f"{name} joins its channels with values that no layer made")
        return self._met(_Value(shape, axis + len(shape), first.labels), name)

    def _unknown(self, node: Node, name: str, given: dict[str, Any]) -> Any:
        """Mixes channels, or may."""
        self._freeze(node.all_input_nodes, f"{name} needs all its channels")
        return _plain(node.meta.get("val"))

    def _met(self, x: _Value, name: str) -> _Value:
        if x.labels is not None:
            self.ties.meet(x.labels, name)
        return x

    def _tie(self, x: _Value, axis: int, labels: Tensor, each: int = 1) -> None:
        """Let the channels of ``x``, if they lie along this axis, be the same as these; ``each`` labels to a channel."""
        if x.labels is not None and x.axis == axis:
            self.ties.tie(x.labels.repeat_interleave(each), labels)
            return
        self.ties.freeze(labels, "what it reads was made by no layer")
        if x.labels is not None:
            self.ties.freeze(x.labels, "its channels are read along another axis")

    def _freeze(self, nodes: Iterable[Node], reason: str) -> None:
        for node in nodes:
            if node.name in self.names:
                for axis in range(len(_shape(node))):
                    if (labels := self._labels(node, axis)) is not None:
                        self.ties.freeze(labels, reason)
            value = self.values[node]
            for x in value if isinstance(value, tuple) else (value,):
                if isinstance(x, _Value) and x.labels is not None:
                    self.ties.freeze(x.labels, reason)

    def _value(self, node: Node) -> _Value:
        """The value of an operand; a parameter that no rule reads as one must stay as it is."""
        if node.name in self.names:
            self._freeze([node], "a function reads it past its layer")
        value = self.values[node]
        return value if isinstance(value, _Value) else _Value(())

    def _labels(self, node: Node, axis: int) -> Tensor | None:
        """The labels along an axis of a plain parameter or buffer; None where it may not shrink."""
        name = self.names.get(node.name)
        if name is None:
            return None
        path, _, key = name.rpartition(".")
        layer = self.model.get_submodule(path)
        axes = layers.kind_of(layer).integers(layer).get(key, ())
        if axis >= len(axes) or axes[axis] is None:
            return None
        if (name, axis) not in self.ties.axes:
            self.ties.axes[name, axis] = self.ties.fresh(_shape(node)[axis])
        return self.ties.axes[name, axis]


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _plain(value: Any) -> Any:
    """Values without channels, in the nesting of a node's outputs."""
    if isinstance(value, tuple | list):
        return tuple(map(_plain, cast("Sequence[Any]", value)))
    return _Value(tuple(value.shape)) if isinstance(value, Tensor) else None


def _arguments(node: Node, schema: Any) -> dict[str, Any]:
    """All arguments of a call by name, defaults included."""
    if schema is None:
        return {}
    given = {part.name: part.default_value for part in schema.arguments}
    return given | dict(zip(given, node.args, strict=False)) | dict(node.kwargs)


def _compress(full_labels: Tensor) -> _Value | None:
    """The one axis along which labels vary; None where there is no such axis, or more than one."""
    axes = [
        axis for axis, size in enumerate(full_labels.shape)
        if size > 1 and not torch.equal(full_labels, full_labels.narrow(axis, 0, 1).expand_as(full_labels))
    ]  # fmt: skip
    if len(axes) != 1:
        return None
    labels = full_labels.movedim(axes[0], -1).reshape(-1, full_labels.shape[axes[0]])[0]
    return _Value(tuple(full_labels.shape), axes[0], labels)
