"""What methods that learn a mask in training share: how many entries to keep, which, and the form that keeps them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kogata.errors import NotApplicable
from kogata.forms import Dense, Form, Masked
from kogata.training_method import Target


def counts(targets: Sequence[Target], sparsity: float) -> list[int]:
    """How many entries of each target are kept, at least one; earlier pruning counts towards ``sparsity``.

    Raises NotApplicable when every target keeps all it has.
    """
    keep = [max(1, round((1 - sparsity) * torch.Size(target.site.shape).numel())) for target in targets]
    if all(count >= target.leaf.shape.numel() for count, target in zip(keep, targets, strict=True)):
        raise NotApplicable(f"a sparsity of {sparsity} is already reached by all of {', '.join(t.site.name for t in targets)}")
    return keep


def top(score: Tensor, keep: int) -> Tensor:
    """Bool, of ``score``'s shape: true at the ``keep`` highest."""
    order = score.flatten().topk(min(keep, score.numel()), sorted=False).indices
    mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    return mask.index_fill(0, order, True).reshape(score.shape)


def kept(leaf: Dense, mask: Tensor) -> Form:
    """The entries of ``leaf`` under ``mask`` (bool, of its shape); its largest if there are none, a leaf if it is all."""
    weight = leaf.values.detach()
    if mask.all():
        return Dense(weight, leaf.role)
    return Masked.of(weight, mask if mask.any() else top(weight.abs(), 1))
