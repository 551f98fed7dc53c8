"""Contrast: after Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020 (1910.10699), section 3.

The student's vector of an example is pulled towards the teacher's vector of that example and away from those of others. The
paper draws its negatives from a memory of the whole training set and estimates a density ratio; here the other examples of the
batch are the negatives, in the InfoNCE loss of van den Oord, Li, Vinyals (1807.03748):
    L = − log ( e^{⟨p(s_i), q(t_i)⟩ / τ} / Σ_j e^{⟨p(s_i), q(t_j)⟩ / τ} ),   the mean over i.
p and q are linear maps learnt with the student, followed by normalization to length 1, as in the paper. Larger batches have
more negatives and work better.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata.job import Task
from kogata.settings import Range
from kogata.training.teachers.observe import Seen
from kogata.training.terms.base import Compared, LayerTerm, Loss, alike, rows


@final
@dataclass(frozen=True, kw_only=True)
class Contrastive(LayerTerm):
    """``width`` is the number of outputs of p and q; None leaves them out, for equal widths. ``temperature`` is τ.

    >>> Contrastive(temperature=0.1).width
    128
    """

    term: str = field(default="contrastive", init=False)
    width: Annotated[int, Range(ge=1)] | None = 128
    temperature: Annotated[float, Range(gt=0)] = 0.07

    def begin(self, student: Seen, teacher: Seen, task: Task) -> Loss:
        """Raises DataError when the widths differ and ``width`` is None."""
        return _Contrastive(self.compared(student, teacher), student, teacher, self)


class _Contrastive(Loss):
    def __init__(self, compared: Compared, student: Seen, teacher: Seen, settings: Contrastive) -> None:
        super().__init__()
        self._compared, self._temperature = compared, settings.temperature
        pairs = [(rows(ours), rows(theirs)) for ours, theirs in compared(student, teacher)]
        if settings.width is None:
            alike(pairs, settings.term)
        self.ours = nn.ModuleList([_projection(ours, settings.width) for ours, _ in pairs])
        self.theirs = nn.ModuleList([_projection(theirs, settings.width) for _, theirs in pairs])

    def forward(self, student: Seen, teacher: Seen, targets: Any) -> Tensor:
        losses = list[Tensor]()
        for p, q, (ours, theirs) in zip(self.ours, self.theirs, self._compared(student, teacher), strict=True):
            first_NW, second_NW = functional.normalize(p(rows(ours))), functional.normalize(q(rows(theirs)))
            scores_NN = first_NW @ second_NW.T / self._temperature
            losses.append(functional.cross_entropy(scores_NN, torch.arange(len(ours), device=ours.device)))
        return torch.stack(losses).sum()


def _projection(x_ND: Tensor, width: int | None) -> nn.Module:
    return nn.Identity() if width is None else nn.Linear(x_ND.shape[1], width, dtype=x_ND.dtype)
