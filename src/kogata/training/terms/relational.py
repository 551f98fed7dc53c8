"""Relations: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019 (1904.05068), equations 5 to 10.

distance:  ψ(i, j) = ‖x_i − x_j‖ / μ,   μ the mean distance over the pairs of the batch;
angle:     ψ(i, j, k) = cos ∠ x_i x_j x_k;
    L = λ_D mean h(ψ_student − ψ_teacher) over pairs + λ_A mean h(…) over triples,   h Huber's loss with δ = 1.
Only relations between examples are compared, so widths may differ. The loss is invariant to rotating, shifting or scaling all
examples together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, final

import torch
from torch import Tensor
from torch.nn import functional

from kogata.job import Task
from kogata.settings import Range
from kogata.training.teachers.observe import Seen
from kogata.training.terms.base import Compared, Formula, LayerTerm, Loss, rows


@final
@dataclass(frozen=True, kw_only=True)
class Relational(LayerTerm):
    """Compare distances and angles between the examples of a batch. ``distance`` is λ_D and ``angle`` λ_A.

    The angles of a batch of n examples need n³ floats of memory.

    >>> Relational(angle=0.0).distance
    25.0
    """

    term: str = field(default="relational", init=False)
    distance: Annotated[float, Range(ge=0)] = 25.0
    angle: Annotated[float, Range(ge=0)] = 50.0

    def begin(self, student: Seen, teacher: Seen, task: Task) -> Loss:
        """Build the loss; layers and outputs of any shapes ``[N, ...]`` can be compared."""
        return Formula(partial(self._loss, self.compared(student, teacher)))

    def _loss(self, compared: Compared, student: Seen, teacher: Seen, targets: Any) -> Tensor:
        losses = list[Tensor]()
        for ours, theirs in compared(student, teacher):
            (first_NN, first_NNN), (second_NN, second_NNN) = (_relations(rows(each)) for each in (ours, theirs))
            count = len(ours)
            pairs, triples = max(1, count * (count - 1)), max(1, count * (count - 1) * (count - 2))
            # Relations of an example with itself are equal on both sides (0 or 1), so they add nothing to the sums.
            losses.append(self.distance * functional.huber_loss(first_NN, second_NN, reduction="sum") / pairs)
            losses.append(self.angle * functional.huber_loss(first_NNN, second_NNN, reduction="sum") / triples)
        return torch.stack(losses).sum()


def _relations(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Distances over their mean ``[i, j]``, and cosines ``[j, i, k]`` of the angles at j between i and k."""
    x_ND = x_ND - x_ND.mean(0)  # leaves distances as they are, and avoids cancellation when the mean is large
    gram_NN = x_ND @ x_ND.T
    square_N = gram_NN.diagonal()
    tiny = torch.finfo(x_ND.dtype).eps * float(square_N.detach().max().clamp_min(torch.finfo(x_ND.dtype).tiny))
    squared_NN = square_N[:, None] + square_N[None, :] - 2 * gram_NN
    apart_NN = squared_NN > tiny
    distance_NN = torch.where(apart_NN, squared_NN, 1.0).sqrt() * apart_NN
    inverse_NN = torch.where(apart_NN, 1 / torch.where(apart_NN, distance_NN, 1.0), 0.0)
    count = len(x_ND)
    mean = distance_NN.sum() / max(1, count * (count - 1))
    product_NNN = gram_NN[None, :, :] - gram_NN[:, :, None] - gram_NN[:, None, :] + square_N[:, None, None]
    cosine_NNN = product_NNN * inverse_NN[:, :, None] * inverse_NN[:, None, :]
    return distance_NN / mean.clamp_min(tiny**0.5), cosine_NNN
