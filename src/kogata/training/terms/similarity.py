"""Similarity: Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019 (1907.09682), equations 1 to 4:

    G = A Aᵀ for activations A ∈ R^{b × D}, each row of G normalized to length 1;    L = Σ_layers ‖G_t − G_s‖²_F / b².
Only similarities between examples are compared, so widths may differ. The loss is invariant to orthogonal maps of the
activations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional

from kogata.job import Task
from kogata.training.teachers.observe import Seen
from kogata.training.terms.base import Compared, Formula, LayerTerm, Loss, rows


@final
@dataclass(frozen=True, kw_only=True)
class Similarity(LayerTerm):
    """Compare which examples of a batch are similar. The loss is small: the paper's ``weight`` is 3000.

    >>> Similarity(weight=3000.0).weight
    3000.0
    """

    term: str = field(default="similarity", init=False)

    def begin(self, student: Seen, teacher: Seen, task: Task) -> Loss:
        """Build the loss; layers and outputs of any shapes ``[N, ...]`` can be compared."""
        return Formula(partial(_loss, self.compared(student, teacher)))


def _loss(compared: Compared, student: Seen, teacher: Seen, targets: Any) -> Tensor:
    return torch.stack([(_similar(a) - _similar(b)).square().mean() for a, b in compared(student, teacher)]).sum()


def _similar(activations: Tensor) -> Tensor:
    a_ND = rows(activations)
    return functional.normalize(a_ND @ a_ND.T, dim=1)
