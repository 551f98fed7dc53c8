"""Observe a model on a batch: its output, and the outputs of selected layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kogata.errors import DataError
from kogata.network import surgery
from kogata.network.batch import call, tensors
from kogata.training.loop import channels_last


@dataclass(frozen=True)
class Seen:
    """A model's output for one batch, and the outputs of the watched layers by path, in the order of its modules."""

    output: Any
    layers: Mapping[str, Tensor]


def paths(model: nn.Module) -> list[str]:
    """The paths of all modules in order, without the model itself and without the forms of its weights."""
    return [path for path, _ in model.named_modules() if path and "parametrizations" not in path.split(".")]


def pick(names: Iterable[str], globs: Sequence[str]) -> list[str]:
    """The names that match a glob in full, case-sensitive: in the order of the globs, then of the names, without repeats."""
    names = list(names)
    return list(dict.fromkeys(name for glob in globs for name in names if fnmatchcase(name, glob)))


def precise(tensor: Tensor) -> Tensor:
    """The tensor in at least float32, because losses must not be computed in the low precision of autocast."""
    return tensor.float() if tensor.itemsize < 4 else tensor


class Observer:
    """Records the outputs of layers by forward hooks until it is closed.

    A layer that runs several times in a forward pass gives its last output.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    >>> observer = Observer(model, ["0"])
    >>> seen = observer.seen(model(torch.randn(2, 4)))
    >>> observer.close()
    >>> tuple(seen.layers["0"].shape)
    (2, 3)
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        chosen = set(names)
        self._names = [path for path in paths(model) if path in chosen]
        self._caught: dict[str, Tensor] = {}
        self._handles = [
            model.get_submodule(name).register_forward_hook(partial(self._catch, name)) for name in self._names
        ]  # fmt: skip

    def seen(self, output: Any) -> Seen:
        """The given output with the layers' outputs of the same forward pass. Raises DataError when a layer did not run."""
        missing = [name for name in self._names if name not in self._caught]
        if missing:
            raise DataError(
                f"distillation: layers {', '.join(missing)} gave no float tensor: they did not run, or their output holds "
                "none. Watch layers that every batch passes through."
            )
        layers = {name: precise(self._caught[name]) for name in self._names}
        self._caught.clear()
        return Seen(output, layers)

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._caught.clear()

    def _catch(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if (first := next(tensors(output), None)) is not None:
            self._caught[name] = first


class Live:
    """A teacher that runs on every batch, in evaluation mode; a copy, so that the user's model keeps its mode and layout."""

    def __init__(self, teacher: nn.Module, layers: Iterable[str] = ()) -> None:
        self._model = channels_last(surgery.clone(teacher, share=False)).eval()
        self._observer = Observer(self._model, layers)

    def __call__(self, inputs: Any, device: torch.device) -> Seen:
        """The teacher's outputs and layers for inputs that lie on ``device``."""
        with torch.no_grad():
            return self._observer.seen(call(self._model.to(device), inputs))
