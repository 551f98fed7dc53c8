"""Conjugate gradients for many symmetric systems at once.

Hestenes and Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952, with a diagonal preconditioner.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

NOTHING = 1e-30  # keeps the quotients of a solved system finite


def solve(apply: Callable[[Tensor], Tensor], right_RN: Tensor, diagonal_RN: Tensor, start_RN: Tensor, steps: int) -> Tensor:
    """The iterate after ``steps`` steps from ``start_RN`` for ``apply(x) = right_RN``; each row is a system of its own.

    The systems must be positive semidefinite, with diagonals ``diagonal_RN``. Unknowns whose diagonal is zero keep their
    values. The quadratic objective of each system never increases.
    """
    inverse = diagonal_RN.clamp_min(NOTHING).reciprocal().where(diagonal_RN > NOTHING, 0)
    residual = right_RN - apply(start_RN)
    x = start_RN.clone()
    del diagonal_RN, right_RN, start_RN  # each may be as large as a layer, and the caller may hold no other reference
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
