"""Conjugate gradients for many symmetric systems at once.

Hestenes and Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952, with a diagonal preconditioner.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

NOTHING = 1e-30  # keeps the quotients of a solved system finite


def solve(apply: Callable[[Tensor], Tensor], right_RN: Tensor, diagonal_RN: Tensor, start_RN: Tensor, steps: int) -> Tensor:
    """What ``steps`` steps make of ``start_RN`` towards ``apply(x) = right_RN``, one positive semidefinite system a row.

    Unknowns whose ``diagonal_RN`` is zero stay as they are. The quadratic of each system never rises.
    """
    inverse = diagonal_RN.clamp_min(NOTHING).reciprocal().where(diagonal_RN > NOTHING, 0)
    residual = right_RN - apply(start_RN)
    x = start_RN.clone()
    del diagonal_RN, right_RN, start_RN  # each may be as large as a layer, and only here
    direction = inverse * residual
    slope = (residual * direction).sum(1, keepdim=True)
    for _ in range(steps):
        image = apply(direction)
        curvature = (direction * image).sum(1, keepdim=True)
        length = (slope / curvature.clamp_min(NOTHING)).where(curvature > NOTHING, 0)
        x.addcmul_(length, direction)
        residual.addcmul_(length, image, value=-1)
        del image
        scaled = inverse * residual
        after = (residual * scaled).sum(1, keepdim=True)
        direction.mul_((after / slope.clamp_min(NOTHING)).where(slope > NOTHING, 0)).add_(scaled)
        slope = after
    return x
