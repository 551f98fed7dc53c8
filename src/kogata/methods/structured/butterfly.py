"""Butterfly matrices: a product of sparse factors, each of which mixes one digit of the index.

Dao, Gu, Eichhorn, Rudra, Ré, ICML 2019 (1903.05895); the projection is the hierarchical peeling of Zheng, Riccietti, Gribonval,
SIAM J. Math. Data Sci. 2023 (2110.01230), and Le, Zheng, Riccietti, Gribonval, ICASSP 2022 (2110.01235):
    W[(j_S … j_1), (i_S … i_1)] = Π_s F_s[j_1 … j_s, i_s … i_S].
To split off F_1: for each (j_1, i_2 … i_S), the entries of W form a matrix of rank one in (j_2 … j_S) and i_1, and for each j_1
its left vectors form a butterfly matrix of the other digits. So rank-one SVDs give all factors, exactly if W is a butterfly
matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self, final

from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.forms import Form, Product, Role
from kogata.forms.product import butterfly
from kogata.job import Site
from kogata.methods.base.guards import ResidualCount
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels.svd import parted
from kogata.methods.structured import projection
from kogata.methods.structured.monarch import leading
from kogata.settings import Range

MOST = 26  # largest number of factors: an einsum equation needs an upper-case and a lower-case letter for each


@final
@dataclass(frozen=True, kw_only=True)
class Butterfly(WeightMethod):
    """Replace a matrix by a product of ``factors`` (2 to 26) sparse factors.

    The index of each side is split into as many digits, of sizes as equal as its divisors allow. A side of 2^factors gives the
    sparsity pattern of the fast Fourier transform. ``residual`` is the rank of an added low-rank correction, 0 for none.
    Weights that would not get smaller stay as they are.

    >>> from kogata import only
    >>> from kogata.methods import Butterfly
    >>> from kogata.testing.models import job_of
    >>> job = only(Butterfly(factors=3), "hidden").apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'product'
    """

    factors: Annotated[int, Range(ge=2, le=MOST)]
    residual: ResidualCount = 0

    ABOUT = About(
        name="butterfly",
        family=projection.FAMILY,
        summary="a product of sparse factors, each mixing one digit of the index",
        paper="Dao et al. 2019, arXiv 1903.05895; Zheng et al. 2023, arXiv 2110.01230",
        layers=projection.LAYERS,
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The smallest number of factors that fits."""
        outputs, inputs = shape[0], math.prod(shape[1:])
        for count in range(2, 1 + max(2, int(math.log2(min(outputs, inputs))))):
            rows, columns = parted(outputs, count), parted(inputs, count)
            held = sum(math.prod(rows[: s + 1]) * math.prod(columns[s:]) for s in range(count))
            if held <= fraction * outputs * inputs:
                return cls(factors=count)
        return None

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The factors, by hierarchical peeling, and the correction; refused where they are no smaller than the weight."""
        rows_OI = projection.matrix(weight, site)
        rows, columns = (parted(size, self.factors) for size in rows_OI.shape)
        parts = [part.to(weight.dtype) for part in peeled(rows_OI.double(), rows, columns)]
        form = Product.of(butterfly(self.factors), parts, weight.shape)
        return projection.finished(form, weight, self.residual, f"{self.factors} factors")


def peeled(rows_OI: Tensor, rows: Sequence[int], columns: Sequence[int]) -> list[Tensor]:
    """The factors, where factor s is ``[j_1 … j_s, i_s … i_S]``. ``rows`` and ``columns`` are digit sizes, fastest first."""
    rest, found = rows_OI[None], list[Tensor]()
    for s in range(len(rows) - 1):
        # [j before s, (l, j_s), (k, i_s)] to one matrix [l, i_s] for each of j up to s and k
        matrices = rest.unflatten(2, (-1, columns[s])).unflatten(1, (-1, rows[s])).permute(0, 2, 3, 1, 4).flatten(0, 1)
        left, right = leading(matrices, 1)  # [j up to s, k, l, 1] and [j up to s, k, 1, i_s]
        digits = right[:, :, 0].unflatten(1, tuple(reversed(columns[s + 1 :])))  # [j up to s, i_S … i_s]
        found.append(digits.permute(0, *range(digits.ndim - 1, 0, -1)).unflatten(0, tuple(rows[: s + 1])))
        rest = left[..., 0].transpose(1, 2)  # [j up to s, l, k]
    return [*found, rest.reshape(*rows, columns[-1])]
