"""Several teachers as one, which averages their outputs.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015 (1503.02531), section 1; Korattikara, Rathod,
Murphy, Welling, "Bayesian Dark Knowledge", NeurIPS 2015 (1506.04416), equation 1, where the teachers are posterior samples:
    p(y | x) = 1/M Σ_m p(y | x, θ_m),
The module returns log p(y | x), whose softmax is p(y | x), so it can be used wherever class scores are expected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kogata.errors import UsageError


class Ensemble(nn.Module):
    """The logarithm of the models' mean class probabilities; each model gives scores ``[N, classes, ...]``.

    With ``regression`` it is the mean of their outputs, tensors of any shape. Raises UsageError when there are no models.

    >>> ensemble = Ensemble([nn.Linear(4, 3), nn.Linear(4, 3)])
    >>> tuple(ensemble(torch.randn(2, 4)).shape)
    (2, 3)
    """

    def __init__(self, models: Iterable[nn.Module], *, regression: bool = False) -> None:
        super().__init__()
        self.models, self.regression = nn.ModuleList(models), regression
        if not len(self.models):
            raise UsageError("ensemble: there are no models; give at least one.")

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The averaged output of the models for these inputs."""
        outputs = torch.stack([model(*args, **kwargs) for model in self.models])
        if self.regression:
            return outputs.mean(0)
        return outputs.log_softmax(2).logsumexp(0) - math.log(len(outputs))
