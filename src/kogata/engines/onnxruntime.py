"""ONNX Runtime on the CPU: the default engine."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar, cast, final

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from kogata.engines import onnx_graph
from kogata.engines.base import Engine, Session
from kogata.engines.lowering.checked import lowered
from kogata.engines.lowering.costs import ONNXRUNTIME, Costs
from kogata.errors import DataError, EngineError
from kogata.forms import Form
from kogata.network.batch import call, evaluating
from kogata.network.nesting import leaves, refilled
from kogata.storage.layout import Artifact, EngineGraph
from kogata.storage.read import read_file
from kogata.system.atomic import writing
from kogata.system.trial import crash_of

_ARRAYS = (Tensor, np.ndarray)


@dataclass(frozen=True)
class Example:
    """The inputs that a graph was made with, the model's output for them, and the names of its positional parameters.

    Tensors of ``inputs`` are of no interest; other values in them are built into the graph.
    """

    inputs: Any
    output: Any
    positions: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, inputs: Any) -> Example:
        """One call of the model."""
        parameters = inspect.signature(model.forward).parameters.values()
        names = (part.name for part in takewhile(lambda part: part.kind is part.POSITIONAL_OR_KEYWORD, parameters))
        with evaluating(model):
            return cls(inputs, call(model, inputs), tuple(names))

    def count(self) -> int:
        """The tensors in the output."""
        return sum(isinstance(part, Tensor) for part in leaves(self.output))

    def named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A call with its arguments by name if the graph was made with names, whose order need not be that of the model.

        Raises DataError when a value that is no tensor differs from the one built into the graph.
        """
        given = dict(zip(self.positions, args, strict=False)) | dict(kwargs)
        made = self.inputs if isinstance(self.inputs, Mapping) else self._by_position()
        for name, built in cast("Mapping[str, Any]", made).items():
            if isinstance(built, bool | int | float | str) and name in given and given[name] != built:
                raise DataError(
                    f"onnxruntime: {name}={given[name]!r} was given, but {built!r} of the calibration data is built into the "
                    "graph."
                )
        if isinstance(self.inputs, Mapping) and len(args) <= len(self.positions):
            return (), given
        return args, dict(kwargs)

    def _by_position(self) -> dict[str, Any]:
        parts: Any = self.inputs if isinstance(self.inputs, tuple | list) else (self.inputs,)
        return dict(zip(self.positions, parts, strict=False))


@final
class OnnxSession(Session):
    """A graph in ONNX Runtime, with as many threads as PyTorch uses. It is called with tensors or arrays on the CPU.

    A graph returns a flat list of tensors. A session of a model that is at hand returns them in the structure of that model's
    outputs, such as a dataclass with ``.logits``, so that a task's ``evaluate`` finds what it expects.
    """

    def __init__(self, proto: onnx.ModelProto, example: Example | None = None) -> None:
        super().__init__()
        self._example = example
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        # Threads that keep spinning after a run would slow down the other session of an interleaved measurement at random.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the exceptions of ONNX Runtime share no public base class
            raise EngineError(f"onnxruntime: cannot load the graph: {str(error).splitlines()[0]}") from None
        self._inputs = [value.name for value in self._session.get_inputs()]

        if example is not None and (wanted := example.count()) != (found := len(self._session.get_outputs())):
            raise EngineError(f"onnxruntime: the graph returns {found} tensors where the model's outputs hold {wanted}.")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs, structured like the model's where it is known, otherwise a tensor or a tuple of tensors.

        Raises DataError when the inputs do not fit the graph, or hold another value than the one that the graph was made with.
        """
        if self._example is not None:
            args, kwargs = self._example.named(args, kwargs)
        feed = self._feed(args, kwargs)
        try:
            outputs = self._session.run(None, feed)
        except Exception as error:  # as above
            raise DataError(f"onnxruntime: inputs {_shapes(feed)} do not fit the graph: {str(error).splitlines()[0]}") from None
        tensors = tuple(torch.from_numpy(output) for output in outputs)
        if self._example is not None:
            return refilled(self._example.output, tensors)
        return tensors[0] if len(tensors) == 1 else tensors

    def _feed(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The arrays of a call by the names of the graph: positions in order, keywords by name, nested ones numbered."""
        values = [part for part in leaves(args) if isinstance(part, _ARRAYS)]
        named = dict[str, Any]()
        for name, value in kwargs.items():
            parts = [part for part in leaves(value) if isinstance(part, _ARRAYS)]
            named |= {name: value} if isinstance(value, _ARRAYS) else {f"{name}_{n}": part for n, part in enumerate(parts)}
        given = dict(zip(self._inputs, values, strict=False)) | named
        if len(given) < len(values) + len(named):
            raise DataError(
                f"onnxruntime: {len(values) + len(named)} inputs do not fit the graph, which takes {', '.join(self._inputs)}."
            )
        return {name: value.numpy() if isinstance(value, Tensor) else value for name, value in given.items()}


@final
@dataclass(frozen=True, kw_only=True)
class OnnxRuntime(Engine):
    """Runs the ONNX graph of the lowered model, with the weights that the forms of the file regenerate."""

    name: ClassVar[str] = "onnxruntime"
    costs: Costs = ONNXRUNTIME

    def graph(self, model: nn.Module, inputs: Any) -> EngineGraph | None:
        """The ONNX graph of the lowered model, with its weights bound to the forms of ``model``."""
        return onnx_graph.bind(self._exported(model, inputs), model)

    def export(self, artifact: Artifact, path: Path) -> None:
        """Write an ONNX file that includes all weights."""
        with writing(path) as file:
            file.write(onnx_graph.fill(artifact).SerializeToString(deterministic=True))

    def open_model(self, model: nn.Module, inputs: Any) -> Session:
        """Export the model and load the graph."""
        return OnnxSession(self._exported(model, inputs), Example.of(model, inputs))

    def open_file(self, artifact: Artifact, model: nn.Module, inputs: Any) -> Session:
        """Load the graph and the weights of the file; ``model`` shows the structure of the outputs."""
        if artifact.graph is None:
            raise EngineError(f"onnxruntime: {artifact.source} has no engine graph; load it with the model's class.")
        return OnnxSession(onnx_graph.fill(artifact), Example.of(model, inputs))

    def _exported(self, model: nn.Module, inputs: Any) -> onnx.ModelProto:
        """The graph, tried in a copy of this process: on some operators ONNX Runtime crashes instead of raising."""
        proto = onnx_graph.export(lowered(model, inputs, self.costs, self.rules), inputs)
        if (signal := crash_of(lambda: OnnxSession(proto))) is not None:
            operators = ", ".join(sorted({node.op_type for node in proto.graph.node}))
            raise EngineError(
                f"onnxruntime: it crashes ({signal}) when it loads the graph of {type(model).__name__}, with the operators "
                f"{operators}. Choose another engine, or replace the layer that one of these is of."
            )
        return proto


def _shapes(feed: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in feed.items()}


def open(path: Path | str, *, forms: Sequence[type[Form]] = (), max_bytes: int | None = None) -> OnnxSession:
    """Open a ``.kogata`` file in ONNX Runtime, without the code of the model.

    The session takes the model's inputs as tensors or arrays, by position or by name, and can be called any number of times.
    ``forms`` are form classes of other packages that the file may hold, and ``max_bytes`` is the most memory that its weights
    may take (by default 64 MiB and 1 KiB for each byte of the file). Raises FileFormatError when the file is damaged, has no
    engine graph, or holds an unknown form. Files written by :func:`kogata.compress` have a graph; those of :func:`kogata.save`
    have none.

    >>> session = open("model.kogata")  # doctest: +SKIP
    >>> session(torch.randn(1, 3, 32, 32)).shape  # doctest: +SKIP
    torch.Size([1, 10])
    """
    return OnnxSession(onnx_graph.fill(read_file(Path(path), forms=forms, max_bytes=max_bytes)))


def run(
    path: Path | str,
    *args: Tensor | np.ndarray,
    forms: Sequence[type[Form]] = (),
    max_bytes: int | None = None,
    **kwargs: Tensor | np.ndarray,
) -> Any:
    """Open a ``.kogata`` file and run it once on the given inputs. For several runs use :func:`kogata.open`.

    Raises as :func:`kogata.open` does, and DataError when the inputs do not fit the graph.
    """
    return open(path, forms=forms, max_bytes=max_bytes)(*args, **kwargs)
