"""CP decomposition: a convolution becomes 1×1, a depthwise filter along each axis of the image, and 1×1.

Lebedev, Ganin, Rakhuba, Oseledets, Lempitsky, ICLR 2015 (1412.6553), section 3:
    W[o, i, y, x] ≈ Σ_{r≤R} A[o, r] D[r, x] C[r, y] B[r, i].
The factors are found by alternating least squares. Some weights have no best approximation: growing terms that cancel each
other approach them ever closer (de Silva and Lim 2008, math/0607647), and such factors cannot be rounded. So each factor is
regularized,
    A ← argmin ‖W − A K‖² + μ ‖A‖²,   K the products of the other factors,
and the regularized error, which has a minimum, never increases. The iteration works on W projected on its leading channels (Bro
and Andersson 1998). It starts from the common eigenvectors of two linear combinations over the kernel's positions (Leurgans,
Ross, Abel 1993; exact where W has rank R and R channels) or from random factors, whichever is better after a few sweeps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable
from kogata.forms import Form, Product, Role
from kogata.forms.product import CP as EQUATIONS
from kogata.job import Kind, Site
from kogata.methods.base.guards import Rank, kernel_of, refuse_unless_fewer, refuse_unless_finite
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels.svd import rank_of
from kogata.methods.lowrank.tucker2 import bases

TRIAL = 10  # sweeps from each start
SWEEPS = 150  # most further sweeps from the better start
POLISH = 4  # final sweeps on the whole weight, without the projection
ENOUGH = 1e-5  # stop when a sweep reduces the error by less than this fraction
PRICE = 1e-7  # μ for a weight of norm 1; far below the error of any truncation
RIDGE = 1e-3  # regularizes the fit to the unit eigenvectors of a start, which may nearly coincide


@final
@dataclass(frozen=True, kw_only=True)
class CP(WeightMethod):
    """Replace a convolution by a sum of ``rank`` outer products of one vector for each axis.

    ``rank`` is a count (int ≥ 1), or a fraction in (0, 1) of an upper bound of the rank: the number of entries over the longest
    side. 1×1 and depthwise convolutions, and weights that would not get smaller, stay as they are.

    >>> from kogata import only
    >>> from kogata.methods import CP
    >>> from kogata.testing.models import job_of
    >>> job = only(CP(rank=4), "conv").apply(job_of("conv"))
    >>> job.model.conv.parametrizations.weight[0].describe()
    'product'
    """

    rank: Rank

    ABOUT = About(
        name="cp",
        family="low rank",
        summary="a convolution becomes 1×1, a depthwise filter along each axis, and 1×1",
        paper="Lebedev et al. 2015, arXiv 1412.6553",
        layers=(Kind.CONV,),
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The largest rank that fits; None for matrices."""
        rank = int(fraction * math.prod(shape) / sum(shape))
        return cls(rank=rank) if rank and len(shape) > 2 else None

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The factors; refused for 1×1 and depthwise convolutions, and where they are no smaller."""
        kernel = kernel_of(weight, "cp")
        rank = rank_of(self.rank, weight.numel() // max(weight.shape))
        refuse_unless_fewer(rank * sum(weight.shape), weight, f"cp of rank {rank}")
        refuse_unless_finite(weight, site)
        norm = float(weight.double().square().sum())
        if norm == 0:
            raise NotApplicable("all its weights are zero")
        modes = fitted(weight.double() / math.sqrt(norm), rank)
        left_OR, right_IR, *lines = (mode * norm ** (0.5 / len(modes)) for mode in modes)
        parts = [left_OR, *(line.T for line in reversed(lines)), right_IR.T]
        return Product.of(EQUATIONS[len(kernel)], [part.to(weight.dtype) for part in parts], weight.shape)


def fitted(weight: Tensor, rank: int) -> list[Tensor]:
    """The factors ``[size, R]`` for each axis of a float64 weight of norm 1. Deterministic."""
    weight_OIK = weight.flatten(2)
    left, right = bases(weight_OIK, *(min(size, rank) for size in weight.shape[:2]))
    core = torch.einsum("oik,op,iq->pqk", weight_OIK, left, right).unflatten(2, weight.shape[2:])
    generator = torch.Generator().manual_seed(0)
    starts = [[torch.randn(size, rank, generator=generator, dtype=core.dtype) / math.sqrt(size) for size in core.shape]]
    if rank == min(core.shape[:2]):
        starts.append(shared(core, generator))
    tried = [descended(core, start, TRIAL) for start in starts]
    (first, second, *lines), _ = min(tried, key=lambda found: found[1])
    (first, second, *lines), _ = descended(core, [first, second, *lines], SWEEPS)
    return descended(weight, [left @ first, right @ second, *lines], POLISH)[0]


def descended(weight: Tensor, start: Sequence[Tensor], sweeps: int) -> tuple[list[Tensor], float]:
    """The factors after at most ``sweeps`` sweeps, fewer where the error hardly falls, and the squared error."""
    modes, error = even(start), math.inf
    for _ in range(sweeps):
        modes, found = _swept(weight, modes)
        modes, gain, error = even(modes), error - found, found
        if gain < ENOUGH * found:
            break
    return modes, error


def _swept(weight: Tensor, modes: Sequence[Tensor]) -> tuple[list[Tensor], float]:
    """Update each factor once; return the factors and the squared error."""
    first, second, *lines = modes
    weight_OIK = weight.flatten(2)
    grams = [mode.T @ mode for mode in modes]

    def solved(projected: Tensor, at: int) -> Tensor:
        rest_RR = math.prod((gram for n, gram in enumerate(grams) if n != at), start=torch.ones_like(grams[0]))
        new = torch.linalg.solve(rest_RR + PRICE * torch.eye(len(rest_RR), dtype=rest_RR.dtype), projected.T).T
        grams[at] = new.T @ new
        return new

    first = solved(weight_OIK.flatten(1) @ columns(second, columns(*lines)), 0)
    half_RIK = (first.T @ weight_OIK.flatten(1)).unflatten(1, weight_OIK.shape[1:])
    second = solved(torch.einsum("rik,kr->ir", half_RIK, columns(*lines)), 1)
    places = torch.einsum("rik,ir->rk", half_RIK, second).unflatten(1, weight.shape[2:])
    projected = places.flatten(1).T
    for n, line in enumerate(lines):
        others = columns(torch.ones_like(line[:1]), *(other for m, other in enumerate(lines) if m != n))
        projected = torch.einsum("rks,sr->kr", places.movedim(1 + n, 1).reshape(len(places), len(line), -1), others)
        lines[n] = solved(projected, 2 + n)
    cross = float((projected * lines[-1]).sum())
    squared = float(math.prod(grams, start=torch.ones_like(grams[0])).sum())
    return [first, second, *lines], float(weight.square().sum()) - 2 * cross + squared


def columns(*modes: Tensor) -> Tensor:
    """The Khatri-Rao product ``[product of sizes, R]``: column r is the Kronecker product of the factors' r-th columns."""
    result = modes[0]
    for mode in modes[1:]:
        result = (result[:, None] * mode[None]).flatten(0, 1)
    return result


def even(modes: Sequence[Tensor]) -> list[Tensor]:
    """Rescale the factors without changing their sum of products, so that their r-th columns have equal norms."""
    norms = [mode.norm(dim=0).clamp_min(torch.finfo(mode.dtype).tiny) for mode in modes]
    length_R = torch.stack(norms).log().mean(0).exp()
    return [mode * (length_R / norm_R) for mode, norm_R in zip(modes, norms, strict=True)]


def shared(core: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Initial factors of ``[R, R, *kernel]``: M_k = A diag(e_k) Bᵀ at every position k, so A has the eigenvectors of M_1 M_2⁻¹.

    Where the rank of W is above R, eigenvectors may be complex. Each conjugate pair is replaced by its real and imaginary
    parts.
    """
    core_PQK = core.flatten(2)
    mixed = [core_PQK @ torch.randn(core_PQK.shape[2], generator=generator, dtype=core.dtype) for _ in range(2)]
    values, vectors = torch.linalg.eig(mixed[0] @ torch.linalg.pinv(mixed[1]))
    first_PR = torch.where(values.imag < 0, vectors.imag, vectors.real)
    gram_RR = first_PR.T @ first_PR + RIDGE * torch.eye(first_PR.shape[1], dtype=core.dtype)
    rest_RQK = torch.linalg.solve(gram_RR, first_PR.T @ core_PQK.flatten(1)).unflatten(1, core_PQK.shape[1:])
    u_RQS, s_RS, v_RSK = torch.linalg.svd(rest_RQK, full_matrices=False)
    modes, rest = [first_PR, (u_RQS[..., 0] * s_RS[:, :1]).T], v_RSK[:, 0].unflatten(1, core.shape[2:])
    if rest.ndim == 2:
        return [*modes, rest.T]
    u, s, v = torch.linalg.svd(rest, full_matrices=False)
    return [*modes, (u[..., 0] * s[:, :1]).T, v[:, 0].T]
