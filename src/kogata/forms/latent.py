"""Latent: a real-valued weight in training that every forward pass quantizes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor

from kogata.coding.plane import Plane
from kogata.errors import UsageError
from kogata.forms.base import Dense, Form


class Latent(Form, ABC):
    """Real values that are trained while the model computes with the quantized values that ``dense`` returns.

    Rounding has no useful derivative, so ``dense`` passes gradients to the values as if it did not round: the straight-through
    estimator (Bengio, Léonard, Courville 2013, 1308.3432). A latent form cannot be saved; the form that ``freeze`` returns can.
    """

    TAG = "latent"

    values: Dense

    def __init__(self, values: Dense) -> None:
        super().__init__()
        self.shape = values.shape
        self.values = values

    @abstractmethod
    def freeze(self) -> Form:
        """The form to store in its place. It regenerates what ``dense`` returns now."""

    def step(self) -> None:
        """Called after each step of the optimizer, before the gradients are cleared."""

    @final
    def planes(self) -> dict[str, Plane]:
        """Raises UsageError: training must be finished first."""
        raise UsageError(f"{type(self).__name__}: this model is still in training; call finish() on it before saving it.")

    @final
    def header(self) -> dict[str, Any]:
        """Raises UsageError, as ``planes`` does."""
        raise UsageError(f"{type(self).__name__}: this model is still in training; call finish() on it before saving it.")

    @classmethod
    @final
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Raises ValueError: files never hold a latent form."""
        raise ValueError("a weight in training is never stored")


def straight_through(rounded: Tensor, values: Tensor) -> Tensor:
    """``rounded``, bit for bit, with the gradient passed to ``values``: the straight-through estimator."""
    return rounded.detach() + (values - values.detach()) if values.requires_grad else rounded


def narrowed(scale: Tensor) -> Tensor:
    """Scales rounded to half precision, in their own dtype, with a straight-through gradient.

    A file then stores each in 16 bits. A scale outside the normal range of half precision, such as zero, stays as it is.
    """
    limits, size = torch.finfo(torch.float16), scale.detach().abs()
    normal = (size >= limits.smallest_normal) & (size <= limits.max)
    return straight_through(scale.detach().half().to(scale.dtype).where(normal, scale.detach()), scale)
