"""Rounding under a quadratic loss: Optimal Brain Quantization in one pass, and what improves on it afterwards.

A row w of a layer has the output error (w − q) H (w − q)ᵀ, H = XᵀX / rows. Frantar and Alistarh (2208.11580) round one weight
at a time and let the others make up for it; in a fixed order of the columns (Frantar et al., 2210.17323) this is successive
rounding under a Cholesky factor H = R Rᵀ, R upper triangular, which needs no inverse:
    ‖e R‖² = Σ_j R_jj² (w_j + Σ_{i<j} e_i R_ij / R_jj − q_j)²,  e = w − q,
each term of which is made smallest in turn. Coordinate descent (Behdin et al., 2309.01885) then changes single codes while
that lowers the error, and the scales have a least-squares fit under fixed codes.
"""

# numba's decorators are untyped
# pyright: reportUntypedFunctionDecorator=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 128  # columns rounded one by one before a matrix product carries their errors to all later ones
STEPS = 24  # scales tried for each group
NARROWEST = 0.4  # of the range of the weights: the smallest of them
TINY = 1e-30  # a step whose inverse float32 still holds; a group of smaller weights becomes zero

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


def damped(gram: Tensor, damping: float) -> Tensor:
    """Each gram ``[..., I, I]`` plus ``damping`` times its mean diagonal, so that it has an inverse.

    It is the identity where no input is ever seen.
    """
    sums = gram.clone()
    diagonal = sums.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.mean(-1, keepdim=True)
    diagonal.add_(damping * mean + (mean == 0))
    return sums


def pivots(gram_II: Tensor, order_I: Tensor) -> tuple[Tensor, Tensor]:
    """Of ``gram_II`` in an order, R Rᵀ: ``T[j, i]`` = R_ij / R_jj ``[I, I]`` and ``R_jj²`` ``[I]``, both float32.

    R_jj² = 1 / [H⁻¹]_jj of the columns from j on: what an error at j costs when all later columns make up for it. As few
    copies are made as may be, for this can be the largest matrix there is.
    """
    last_first_I = order_I.flip(0)
    root_II = torch.linalg.cholesky(gram_II[last_first_I[:, None], last_first_I].double()).float().flip(0, 1)
    diagonal_I = root_II.diagonal().clone()
    return root_II.div_(diagonal_I).T.contiguous(), diagonal_I.square()


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What each weight may become: ``scale · (code − zero)``, code in ``[0, top]``; where not ``kept``, zero.

    Float32 and bool, all ``[O, I]``.
    """

    scale: Tensor
    zero: Tensor
    kept: Tensor
    top: int

    def columns(self, order_I: Tensor) -> Grid:
        """The grid of the columns in another order."""
        scale, zero, kept = (part[:, order_I].contiguous() for part in (self.scale, self.zero, self.kept))
        return Grid(scale=scale, zero=zero, kept=kept, top=self.top)


def successive(weight_OI: Tensor, transfer_II: Tensor, grid: Grid) -> Tensor:
    """Codes ``[O, I]`` (float32), column after column, each making up for the errors before it.

    ``transfer_II`` is the first of :func:`pivots`.
    """
    error_OI, code_OI = torch.zeros_like(weight_OI), torch.empty_like(weight_OI)
    for start in range(0, weight_OI.shape[1], BLOCK):
        stop = min(start + BLOCK, weight_OI.shape[1])
        carried_OB = error_OI[:, :start] @ transfer_II[start:stop, :start].T
        _successive(
            weight_OI.numpy(), carried_OB.numpy(), transfer_II.numpy(), grid.scale.numpy(), grid.zero.numpy(),
            grid.kept.numpy(), grid.top, error_OI.numpy(), code_OI.numpy(), start,
        )  # fmt: skip
    return code_OI


def descend(weight_OI: Tensor, gram_II: Tensor, grid: Grid, code_OI: Tensor, sweeps: int) -> Tensor:
    """Better codes ``[O, I]``: each in turn becomes the best given all others, in so many sweeps or until none changes."""
    code_OI = code_OI.clone()
    gradient_OI = (weight_OI - grid.scale * (code_OI - grid.zero)) @ gram_II
    _descend(
        gradient_OI.numpy(), gram_II.numpy(), grid.scale.numpy(), grid.zero.numpy(), grid.kept.numpy(), grid.top,
        code_OI.numpy(), sweeps,
    )  # fmt: skip
    return code_OI


def search(rows_RC: Tensor, importance_RC: Tensor, *, bits: int, group: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point ``[R, groups]`` of each group that round it to nearest with the least error, by importance.

    Scales are tried from ``NARROWEST`` to all of the range of the weights, each with the zero points around the range's own;
    a symmetric grid has its zero point in the middle.
    """
    rows, columns = rows_RC.shape
    scale_RG = torch.empty(rows, -(-columns // group))
    zero_RG = torch.empty_like(scale_RG)
    centre = 2 ** (bits - 1) if symmetric and bits > 1 else -1
    _search(
        rows_RC.numpy(), importance_RC.numpy(), 2**bits - 1, group, centre, STEPS, NARROWEST, scale_RG.numpy(), zero_RG.numpy()
    )
    return scale_RG, zero_RG


@njit(cache=True, nogil=True, parallel=True, fastmath=True)
def _successive(
    weight: Floats, carried: Floats, transfer: Floats, scale: Floats, zero: Floats, kept: Bools, top: int, error: Floats,
    code: Floats, start: int,
) -> None:  # fmt: skip
    for r in prange(weight.shape[0]):
        for j in range(start, start + carried.shape[1]):
            target = weight[r, j] + carried[r, j - start]
            for i in range(start, j):
                target += transfer[j, i] * error[r, i]
            z = zero[r, j]
            if kept[r, j]:
                code[r, j] = min(max(np.rint(target / scale[r, j]) + z, np.float32(0)), np.float32(top))
            else:
                code[r, j] = z
            error[r, j] = weight[r, j] - scale[r, j] * (code[r, j] - z)


@njit(cache=True, nogil=True, parallel=True, fastmath=True)
def _descend(
    gradient: Floats, gram: Floats, scale: Floats, zero: Floats, kept: Bools, top: int, code: Floats, sweeps: int
) -> None:
    rows, columns = code.shape
    for r in prange(rows):
        for _ in range(sweeps):
            changed = False
            for j in range(columns):
                if not kept[r, j]:
                    continue
                s, old = scale[r, j], code[r, j]
                best = np.rint(old + gradient[r, j] / (gram[j, j] * s))
                best = min(max(best, np.float32(0)), np.float32(top))
                if best != old:
                    step = s * (best - old)
                    code[r, j] = best
                    for i in range(columns):
                        gradient[r, i] -= gram[j, i] * step
                    changed = True
            if not changed:
                break


@njit(cache=True, nogil=True, parallel=True, fastmath=True)
def _search(
    rows: Floats, importance: Floats, top: int, group: int, centre: int, steps: int, narrowest: float, scales: Floats,
    zeros: Floats,
) -> None:  # fmt: skip
    groups = scales.shape[1]
    for n in prange(scales.size):
        r, g = n // groups, n % groups
        start, stop = g * group, min((g + 1) * group, rows.shape[1])
        low, high = np.float32(0), np.float32(0)
        for i in range(start, stop):
            low, high = min(low, rows[r, i]), max(high, rows[r, i])
        if centre >= 0:
            full = max(-low / np.float32(centre), high / np.float32(top - centre))
            first = last = centre
        else:
            full = (high - low) / np.float32(top)
            middle = int(np.rint(-low / full)) if full > TINY else 0
            first, last = max(0, middle - 1), min(top, middle + 1)
        scales[r, g], zeros[r, g] = full, np.float32((first + last) // 2)
        if full <= TINY:
            continue
        least = np.float32(np.inf)
        for k in range(1, steps + 1):
            s = full * np.float32(narrowest + (1 - narrowest) * k / steps)
            inverse = np.float32(1) / s
            for z in range(first, last + 1):
                loss = np.float32(0)
                bottom, ceiling = np.float32(-z), np.float32(top - z)
                for i in range(start, stop):
                    step = min(max(np.rint(rows[r, i] * inverse), bottom), ceiling)
                    loss += importance[r, i] * (rows[r, i] - s * step) ** 2
                if loss < least:
                    least = loss
                    scales[r, g], zeros[r, g] = s, np.float32(z)
