"""Several teachers as one: the average of what they say.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015 (1503.02531), section 1; Korattikara, Rathod,
Murphy, Welling, "Bayesian Dark Knowledge", NeurIPS 2015 (1506.04416), equation 1, where the teachers are posterior samples:
    p(y | x) = 1/M Σ_m p(y | x, θ_m),
given as log p(y | x), whose softmax it is, so that it serves wherever class scores do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kogata.errors import UsageError


class Ensemble(nn.Module):
    """Log of the mean of the models' class probabilities, over axis 1 of their scores ``[N, classes, ...]``.

    Of a ``regression`` it is the plain mean of their outputs, tensors of any shape. Raises UsageError for no models.
    """

    def __init__(self, models: Iterable[nn.Module], *, regression: bool = False) -> None:
        super().__init__()
        self.models, self.regression = nn.ModuleList(models), regression
        if not len(self.models):
            raise UsageError("ensemble: there are no models; give at least one.")

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the models make of their inputs, together."""
        outputs = torch.stack([model(*args, **kwargs) for model in self.models])
        if self.regression:
            return outputs.mean(0)
        return outputs.log_softmax(2).logsumexp(0) - math.log(len(outputs))
