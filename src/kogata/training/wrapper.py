"""What a training-time method wraps around a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class TrainingWrapper(nn.Module, ABC):
    """A model under a training-time method: it is trained in place of the model, by any loop, and finished into one.

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
        """What the model makes of its inputs."""
        return self.model(*args, **kwargs)

    def penalty(self) -> Tensor:
        """What to add to the loss: a scalar."""
        return torch.zeros((), device=next(self.parameters()).device)

    def step(self, progress: float) -> None:
        """To be called after each step of the optimizer, with the fraction of all steps that are done."""

    @abstractmethod
    def finish(self) -> nn.Module:
        """The trained model, its weights in forms that can be stored."""
