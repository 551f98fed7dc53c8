"""Ternary weights: −α, 0 or α in each row.

Li, Zhang, Liu, "Ternary Weight Networks", 2016 (1605.04711), equations 3 to 5: the minimum over α, t ∈ {−1, 0, 1}ⁿ of ‖w − αt‖²
has t_i = sign(w_i) where |w_i| > Δ, else 0, and with I the set of weights above the threshold
    α = Σ_I |w_i| / |I|,  I = argmax (Σ_I |w_i|)² / |I|.
The paper approximates Δ by 0.7 mean |w|. The best I consists of the k largest weights for some k, so here one sort finds it
exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from kogata.forms import Affine, Dense, Form, Latent, Role
from kogata.forms.affine import as_rows
from kogata.forms.latent import narrowed, straight_through
from kogata.methods.base.method import About
from kogata.methods.base.trained import LatentWrapper, TrainedLeaf, TrainingMethod
from kogata.methods.recover import Recover
from kogata.training.wrapper import TrainingWrapper


@final
@dataclass(frozen=True, kw_only=True)
class Ternary(TrainingMethod):
    """Train weights that are −α, 0 or α, with the optimal α for each row. Raises DataError without training data.

    >>> import torch
    >>> from kogata.methods import Ternary, Recover
    >>> net = Ternary(recover=Recover(epochs=5)).begin(torch.nn.Linear(16, 8))
    >>> net.finish().parametrizations.weight[0].describe()
    'affine'
    """

    recover: Recover

    ABOUT = About(
        name="ternary",
        family="quantization",
        summary="train ternary weights, with a scale for each row",
        paper="Li et al. 2016, arXiv 1605.04711",
        training=True,
        accepts=frozenset({Role.MATRIX, Role.VALUES}),
        leaves=frozenset({Role.SCALE}),
    )

    def wrap(self, model: nn.Module, targets: Sequence[TrainedLeaf]) -> TrainingWrapper:
        """The model with ternary targets; their values are the real weights."""
        return LatentWrapper(model, [(target, _Ternary(target.leaf)) for target in targets])


class _Ternary(Latent):
    """For each row, its nearest ternary approximation."""

    def dense(self) -> Tensor:
        """α t."""
        values = self.values.dense()
        signs_OI, scale_O1 = ternary(as_rows(values.detach()))
        return straight_through((signs_OI * scale_O1).reshape(self.shape), values)

    def freeze(self) -> Form:
        """Codes 0, 1, 2 with the zero point 1."""
        signs_OI, scale_O1 = ternary(as_rows(self.values.values.detach()))
        code = (signs_OI + 1).to(torch.uint8).reshape(self.shape)
        zero_O1 = torch.ones_like(scale_O1, dtype=torch.uint8)
        return Affine(code, Dense(scale_O1, Role.SCALE), zero_O1, bits=2, group=signs_OI.shape[1])


def ternary(rows_OI: Tensor) -> tuple[Tensor, Tensor]:
    """The ternary signs ``[O, I]`` and scales ``[O, 1]`` with the least squared error for each row."""
    largest_OI = rows_OI.abs().sort(1, descending=True).values
    total_OI = largest_OI.cumsum(1)
    count_I = torch.arange(1, rows_OI.shape[1] + 1, device=rows_OI.device)
    best_O1 = (total_OI.square() / count_I).argmax(1, keepdim=True)
    scale_O1 = narrowed(total_OI.gather(1, best_O1) / (best_O1 + 1))
    return rows_OI.sign() * (rows_OI.abs() >= largest_OI.gather(1, best_O1)), scale_O1
