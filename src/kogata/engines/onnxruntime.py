"""ONNX Runtime on the CPU: the default engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

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
from kogata.storage.layout import Artifact, EngineGraph
from kogata.storage.read import read_file
from kogata.system.atomic import writing
from kogata.system.trial import crash_of


@final
class OnnxSession(Session):
    """A graph in ONNX Runtime, with as many threads as PyTorch uses. It is called with tensors or arrays on the CPU."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        super().__init__()
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

    def forward(self, *args: Tensor | np.ndarray, **kwargs: Tensor | np.ndarray) -> Any:
        """The outputs: a tensor, or a tuple of tensors. Raises DataError when the inputs do not fit the graph."""
        given = dict(zip(self._inputs, args, strict=False)) | kwargs
        if len(given) < len(args) + len(kwargs):
            raise DataError(
                f"onnxruntime: {len(args) + len(kwargs)} inputs do not fit the graph, which takes {', '.join(self._inputs)}."
            )
        feed = {name: value.numpy() if isinstance(value, Tensor) else value for name, value in given.items()}
        try:
            outputs = self._session.run(None, feed)
        except Exception as error:  # as above
            raise DataError(f"onnxruntime: inputs {_shapes(feed)} do not fit the graph: {str(error).splitlines()[0]}") from None
        tensors = tuple(torch.from_numpy(output) for output in outputs)
        return tensors[0] if len(tensors) == 1 else tensors


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
        return OnnxSession(self._exported(model, inputs))

    def open_file(self, artifact: Artifact, model: nn.Module, inputs: Any) -> Session:
        """Load the graph and the weights of the file; ``model`` is not used."""
        if artifact.graph is None:
            raise EngineError(f"onnxruntime: {artifact.source} has no engine graph; load it with the model's class.")
        return OnnxSession(onnx_graph.fill(artifact))

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
