"""PyTorch in eager mode: runs the lowered model itself, in the channels-last layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import nn

from kogata.engines.base import Engine, Session
from kogata.engines.lowering.checked import lowered
from kogata.engines.lowering.layout import channels_last
from kogata.network.batch import call
from kogata.storage.layout import Artifact


@final
class EagerSession(Session):
    """A model without forms, in evaluation mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = channels_last(model).eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the model, without gradients."""
        with torch.inference_mode():
            return call(self.model, kwargs or args)


@final
@dataclass(frozen=True, kw_only=True)
class Eager(Engine):
    """PyTorch without a compiler."""

    name: ClassVar[str] = "eager"

    def export(self, artifact: Artifact, path: Path) -> None:
        """Nothing: PyTorch runs the ``.kogata`` file itself."""

    def open_model(self, model: nn.Module, inputs: Any) -> Session:
        """A copy of the model, lowered to cheaper layers."""
        return EagerSession(lowered(model, inputs, self.costs, self.rules))

    def open_file(self, artifact: Artifact, model: nn.Module, inputs: Any) -> Session:
        """A copy of the loaded model, lowered to cheaper layers."""
        return EagerSession(lowered(model, inputs, self.costs, self.rules))
