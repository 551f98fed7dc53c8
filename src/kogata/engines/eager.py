"""PyTorch eager: the lowered plain model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from kogata.engines.base import Engine, Session
from kogata.engines.lowering.checked import lowered
from kogata.network.batch import call
from kogata.storage.layout import Artifact


@final
class EagerSession(Session):
    """A plain model in evaluation mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output, without gradients."""
        with torch.inference_mode():
            return call(self.model, kwargs or args)


@final
class Eager(Engine):
    """PyTorch without a compiler."""

    name = "eager"

    def export(self, artifact: Artifact, path: Path) -> None:
        """Nothing: PyTorch runs the ``.kogata`` file itself."""

    def open_model(self, model: nn.Module, inputs: Any) -> Session:
        """The model as it is."""
        return EagerSession(lowered(model, inputs))

    def open_file(self, artifact: Artifact, model: nn.Module, inputs: Any) -> Session:
        """The loaded model, lowered."""
        return EagerSession(lowered(model, inputs))
