"""Tensor train: row and column indices of a matrix are split into digits, with one small core for each pair of digits.

Novikov, Podoprikhin, Osokin, Vetrov, NeurIPS 2015 (1509.06569), equations 2 and 4; Oseledets, SIAM J. Sci. Comput. 2011,
algorithm 1 and theorem 2.2:
    W[(a_1 … a_d), (b_1 … b_d)] = G_1[a_1, b_1] G_2[a_2, b_2] … G_d[a_d, b_d],   G_k[a, b] an r_{k−1} × r_k matrix,
computed by d − 1 successive SVDs. Then ‖W − W̃‖² ≤ Σ_k ε_k², where ε_k² is the sum of the squared singular values that the k-th
SVD discards, and this is at most d − 1 times the minimum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_letters
from typing import Annotated, Self, final

from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable
from kogata.forms import Form, Product, Role
from kogata.job import Kind, Site
from kogata.methods.base.guards import Rank, refuse_unless_fewer, refuse_unless_finite
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels import sizes, svd
from kogata.methods.kernels.svd import parted
from kogata.settings import Range

CORES = 3  # default number of cores
MOST = len(ascii_letters) // 3  # largest number of cores: an einsum equation needs three letters for each


@final
@dataclass(frozen=True, kw_only=True)
class TensorTrain(WeightMethod):
    """Replace a matrix by a chain of ``cores`` small tensors (2 to 17).

    ``rank`` is the rank of all links between neighbouring cores: a count (int ≥ 1), limited to the full rank of each link, or a
    fraction of the full rank in (0, 1). The numbers of outputs and inputs are factored into ``cores`` integers of about equal
    size, so sizes with many divisors compress best. The form saves bytes, not time: engines multiply by the dense matrix.

    >>> from kogata import only
    >>> from kogata.methods import TensorTrain
    >>> from kogata.testing.models import job_of
    >>> job = only(TensorTrain(rank=4), "hidden").apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'product'
    """

    rank: Rank
    cores: Annotated[int, Range(ge=2, le=MOST)] = CORES

    ABOUT = About(
        name="tensor-train",
        family="low rank",
        summary="a matrix becomes a chain of small cores",
        paper="Novikov et al. 2015, arXiv 1509.06569",
        layers=(Kind.LINEAR, Kind.EMBEDDING),
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The largest fractional rank at which three cores fit; None unless the weight is a matrix."""
        if len(shape) != 2:
            return None
        pairs = [row * column for row, column in zip(*(parted(size, CORES) for size in shape), strict=True)]
        rank = sizes.largest_fraction(lambda rank: held(pairs, links(pairs, rank)), fraction * math.prod(shape))
        return cls(rank=rank, cores=CORES) if rank else None

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The cores, by successive SVDs; refused unless the weight is a matrix, and where they are no smaller."""
        if weight.ndim != 2:
            raise NotApplicable(f"it factors matrices only, this weight has the shape {tuple(weight.shape)}")
        rows, columns = (parted(size, self.cores) for size in weight.shape)
        pairs = [row * column for row, column in zip(rows, columns, strict=True)]
        ranks = links(pairs, self.rank)
        refuse_unless_fewer(held(pairs, ranks), weight, f"a tensor train of sizes {pairs} and ranks {ranks}")
        refuse_unless_finite(weight, site)
        order = [axis for k in range(self.cores) for axis in (k, self.cores + k)]
        tensor = weight.double().reshape(*rows, *columns).permute(order)
        cores = [core.to(weight.dtype) for core in train(tensor.reshape(pairs), ranks)]
        shaped = [core.unflatten(1, pair) for core, pair in zip(cores, zip(rows, columns, strict=True), strict=True)]
        shaped[0], shaped[-1] = shaped[0].squeeze(0), shaped[-1].squeeze(-1)
        return Product.of(equation(self.cores), shaped, weight.shape)


def train(tensor: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    """Cores ``[r_{k−1}, size_k, r_k]`` of a float64 tensor ``[size_1, …, size_d]``, with r_0 = r_d = 1."""
    cores, rest = list[Tensor](), tensor.reshape(1, -1)
    for size, rank in zip(tensor.shape, ranks, strict=False):
        before = len(rest)
        unfolded = rest.reshape(before * size, -1)
        basis = svd.leading(unfolded, rank) if len(unfolded) <= unfolded.shape[1] else svd.truncated(unfolded, rank)[0]
        rest = basis.T @ unfolded
        cores.append(basis.reshape(before, size, rank))
    return [*cores, rest.reshape(len(rest), tensor.shape[-1], 1)]


def links(sizes: Sequence[int], rank: float) -> list[int]:
    """The rank of each link, limited to the full rank of the unfolding at that link."""
    found, before = list[int](), 1
    for k in range(1, len(sizes)):
        full = min(before * sizes[k - 1], math.prod(sizes[k:]))
        before = min(svd.rank_of(rank, full), full)
        found.append(before)
    return found


def held(sizes: Sequence[int], ranks: Sequence[int]) -> int:
    """The number of entries of all cores."""
    return sum(before * size * after for before, size, after in zip([1, *ranks], sizes, [*ranks, 1], strict=True))


def equation(cores: int) -> str:
    """The einsum equation of a tensor train with so many cores.

    >>> equation(3)
    'adg,gbeh,hcf->abcdef'
    """
    row, column, link = (ascii_letters[k * cores : (k + 1) * cores] for k in range(3))
    inner = [f"{link[k - 1] if k else ''}{row[k]}{column[k]}{link[k] if k < cores - 1 else ''}" for k in range(cores)]
    return f"{','.join(inner)}->{row}{column}"
