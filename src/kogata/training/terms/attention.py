"""Attention transfer: Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017 (1612.03928), equations 1 and 2:

    Q = Σ_c |A_c|²  at each position,      L = ½ Σ_layers ‖Q_s / ‖Q_s‖ − Q_t / ‖Q_t‖‖₂,   averaged over examples.
The student may have another number of channels; maps of another size are resized. ``weight`` is the paper's β. The paper uses
about 1000 beside the loss on labels, with averaged squares; the norms of equation 2, used here, need 1 to 100.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional

from kogata.errors import UsageError
from kogata.job import Task
from kogata.training.teachers.observe import Seen
from kogata.training.terms.base import Compared, Formula, LayerTerm, Loss, rows
from kogata.training.terms.regressor import resized


@final
@dataclass(frozen=True, kw_only=True)
class AttentionTransfer(LayerTerm):
    """Match the attention maps of layers: feature maps ``[N, C, H, W]``, or sequences ``[N, T, C]`` of equal length.

    >>> AttentionTransfer(student=("layer?",), teacher=("layer?",), weight=10.0).weight
    10.0
    """

    term: str = field(default="attention-transfer", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need_layers()

    def begin(self, student: Seen, teacher: Seen, task: Task) -> Loss:
        """Raises UsageError for layers without positions, or whose positions cannot be matched."""
        compared = self.compared(student, teacher)
        for ours, theirs in compared(student, teacher):
            if ours.ndim != theirs.ndim or ours.ndim not in (3, 4) or (ours.ndim == 3 and ours.shape[1] != theirs.shape[1]):
                raise UsageError(
                    f"term {self.term}: shapes {tuple(ours.shape)} and {tuple(theirs.shape)} cannot be compared; expected "
                    "images [N, C, H, W], or sequences [N, T, C] of one length."
                )
        return Formula(partial(_loss, compared))


def _loss(compared: Compared, student: Seen, teacher: Seen, targets: Any) -> Tensor:
    return torch.stack([_distance(ours, theirs) for ours, theirs in compared(student, teacher)]).sum()


def _distance(ours: Tensor, theirs: Tensor) -> Tensor:
    if ours.ndim == 3:
        maps = ours.square().sum(2), theirs.square().sum(2)
    else:
        wanted = theirs.square().sum(1, keepdim=True)
        maps = resized(ours.square().sum(1, keepdim=True), tuple(wanted.shape[2:])), wanted
    first, second = (functional.normalize(rows(each), dim=1) for each in maps)
    return torch.linalg.vector_norm(first - second, dim=1).mean() / 2
