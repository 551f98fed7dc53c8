"""PyTorch eager: the lowered plain model itself."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import nn

from kogata import surgery
from kogata.artifact import Artifact
from kogata.batch import call
from kogata.engines.base import Engine, Session


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

    def open_model(self, model: nn.Module, inputs: Any) -> Session:
        """The model as it is."""
        return EagerSession(surgery.lower(model))

    def open_file(self, artifact: Artifact, model: nn.Module) -> Session:
        """The loaded model, lowered."""
        return EagerSession(surgery.lower(model))
