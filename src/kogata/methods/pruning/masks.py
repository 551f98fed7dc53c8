"""What pruning methods share: how many entries to keep, which, and the form that keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from kogata.errors import NotApplicable
from kogata.forms import Dense, Form, Masked
from kogata.methods.base.planned import PlannedLeaf
from kogata.methods.base.trained import TrainedLeaf
from kogata.methods.kernels.obs import largest


def counts(targets: Sequence[TrainedLeaf], sparsity: float) -> list[int]:
    """How many entries of each target are kept, at least one; earlier pruning counts towards ``sparsity``.

    Raises NotApplicable when every target keeps all it has.
    """
    keep = [max(1, round((1 - sparsity) * torch.Size(target.site.shape).numel())) for target in targets]
    if all(count >= target.leaf.shape.numel() for count, target in zip(keep, targets, strict=True)):
        raise NotApplicable(f"a sparsity of {sparsity} is already reached by all of {', '.join(t.site.name for t in targets)}")
    return keep


def highest(weight: Tensor, score: Tensor, keep: int) -> Masked:
    """The entries of ``weight`` with the ``keep`` highest scores. Raises NotApplicable where that is all or none of them."""
    if not 0 < keep < weight.numel():
        raise NotApplicable(f"keeping {keep} of {weight.numel()} weights changes nothing or leaves nothing")
    return Masked.of(weight, largest(score, keep))


def common_threshold(
    name: str, leaves: Iterable[PlannedLeaf], score: Callable[[PlannedLeaf], Tensor], sparsity: float
) -> float:
    """The score from which on entries are kept, so that all leaves together have this part of zeros.

    Earlier pruning counts towards ``sparsity``. Raises NotApplicable, with the ``name`` of the method, where all entries or
    none of them would be kept.
    """
    scores, total = list[Tensor](), 0
    for leaf in leaves:
        scores.append(score(leaf).flatten())
        total += torch.Size(leaf.part.shape).numel()
    ranked = torch.cat(scores).sort(descending=True).values if scores else torch.empty(0)
    keep = round((1 - sparsity) * total)
    if not 0 < keep < len(ranked):
        raise NotApplicable(f"{name}: keeping {keep} of {len(ranked)} weights changes nothing or leaves nothing.")
    return float(ranked[keep - 1])


def above(weight: Tensor, score: Tensor, threshold: float) -> Masked:
    """The entries of ``weight`` whose score reaches the threshold, at least the best. Raises NotApplicable when all do."""
    mask = score >= min(threshold, float(score.max()))
    if mask.all():
        raise NotApplicable("all its weights are above the common threshold")
    return Masked.of(weight, mask)


def kept(leaf: Dense, mask: Tensor) -> Form:
    """The entries of ``leaf`` under ``mask`` (bool, of its shape); its largest if there are none, a leaf if it is all."""
    weight = leaf.values.detach()
    if mask.all():
        return Dense(weight, leaf.role)
    return Masked.of(weight, mask if mask.any() else largest(weight.abs(), 1))
