"""Whitening by the Gram matrix of a layer's inputs, and the correction of a weight for changed inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable
from kogata.job import Site
from kogata.methods.base.guards import refuse_unless_finite

DAMPING = torch.finfo(torch.float32).eps  # relative to the trace of G: smaller parts of G, a float32 sum, are rounding noise


RIDGE = 1e-3  # λ, relative to the trace of G: a smaller one would overfit the calibration data


def corrected(weight: Tensor, site: Site, stats: Stats) -> Tensor:
    """The weight whose outputs on the inputs of the compressed model are closest to those of ``weight`` in the original model.

    It has the shape of ``weight`` and is float64. Raises as ``spectrum`` does, and NotApplicable without the cross statistics
    of both models.
    """
    gram_II = seen(weight, site, stats)
    if stats.cross_GII is None:
        raise NotApplicable("its inputs in the original model could not be seen")
    ridge_II = multiple(RIDGE, gram_II)
    wanted_OI = weight.flatten(1).double() @ (stats.cross_GII[0].double() + ridge_II)
    return torch.linalg.solve(gram_II + ridge_II, wanted_OI, left=False).reshape(weight.shape)


def spectrum(weight: Tensor, site: Site, stats: Stats) -> tuple[Tensor, Tensor]:
    """The squared singular values of W S, largest first, and the left singular vectors ``[O, min(O, I)]``; S Sᵀ = G. Float64.

    Raises NotApplicable when the inputs of the weight do not form one matrix, DataError when the weight is not finite.
    """
    gram_II = seen(weight, site, stats)
    gram_II = gram_II + multiple(DAMPING, gram_II)
    matrix_OI = weight.flatten(1).double()
    basis = torch.eye(len(matrix_OI), dtype=torch.float64)
    if len(matrix_OI) > len(gram_II):
        basis, matrix_OI = torch.linalg.qr(matrix_OI)  # the same singular values, from a matrix with fewer rows
    values, vectors = torch.linalg.eigh(matrix_OI @ gram_II @ matrix_OI.T)
    return values.clamp_min(0).flip(0), basis @ vectors.flip(1)


def seen(weight: Tensor, site: Site, stats: Stats) -> Tensor:
    """The Gram matrix of the weight's inputs ``[I, I]``, in float64. Raises as ``spectrum`` does."""
    if stats.gram_GII is None:
        raise NotApplicable(stats.unseen)
    if stats.gram_GII.shape[1] != weight[0].numel():
        raise NotApplicable("its inputs could not be matched to the columns of this weight")
    if len(stats.gram_GII) > 1:
        raise NotApplicable("its rows do not all multiply the same inputs, as in a grouped convolution")
    refuse_unless_finite(weight, site)
    return stats.gram_GII[0].double()


def multiple(part: float, gram_II: Tensor) -> Tensor:
    """The identity times ``part`` of the trace of ``gram_II``, or times a tiny number where the trace is zero."""
    return max(part * float(gram_II.trace()), torch.finfo(torch.float32).tiny) * torch.eye(len(gram_II), dtype=torch.float64)
