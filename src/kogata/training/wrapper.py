"""The wrapper that a training-time method puts around a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class TrainingWrapper(nn.Module, ABC):
    """A model under a training-time method. Any training loop can train it in the model's place.

    The loop adds :meth:`penalty` to its loss and calls :meth:`step` after each optimizer step. After training, :meth:`finish`
    returns the compressed model.

    >>> from kogata.methods import BinaryConnect, Recover
    >>> net = BinaryConnect(recover=Recover(epochs=1)).begin(nn.Linear(4, 2))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> loss = net(torch.ones(3, 4)).square().mean() + net.penalty()
    >>> loss.backward()
    >>> optimizer.step()
    >>> net.step(progress=1.0)
    >>> type(net.finish())
    <class 'torch.nn.utils.parametrize.ParametrizedLinear'>
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output for these inputs, with the weights that the method trains."""
        return self.model(*args, **kwargs)

    def penalty(self) -> Tensor:
        """The method's penalty, a scalar to be added to the loss; 0 for methods that have none."""
        return torch.zeros((), device=next(self.parameters()).device)

    def step(self, progress: float) -> None:
        """Update the method's own state. To be called after each optimizer step; ``progress`` goes from 0 to 1."""

    @abstractmethod
    def finish(self) -> nn.Module:
        """The trained model, its weights as forms that a file can store."""
