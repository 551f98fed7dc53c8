"""Block-diagonal weights: each block of outputs reads only one block of inputs.

Dao et al., ICML 2022 (2204.00595), section 3, where two of them make a Monarch matrix; grouped layers, Krizhevsky et al.,
NeurIPS 2012:
    W = diag(W_1, …, W_b),   ‖W − W̃‖² = Σ of the squared entries outside of the blocks.
The nearest such matrix keeps the blocks unchanged. All connections between blocks are lost, so add a residual or train
afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self, final

from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable
from kogata.forms import Form, Role
from kogata.forms.structured_maps import Diagonal
from kogata.forms.tied import Tied
from kogata.job import Site
from kogata.methods.base.guards import ResidualCount
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels import sizes
from kogata.methods.structured import projection
from kogata.settings import Range


@final
@dataclass(frozen=True, kw_only=True)
class BlockDiagonal(WeightMethod):
    """Keep ``blocks`` (2 or more) blocks on the diagonal, plus a low-rank correction of rank ``residual``, 0 for none.

    Where ``blocks`` does not divide a side, the last block is cropped. Weights with a side smaller than ``blocks`` stay as they
    are.

    >>> from kogata import only
    >>> from kogata.methods import BlockDiagonal
    >>> from kogata.testing.models import job_of
    >>> job = only(BlockDiagonal(blocks=4), "hidden").apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'tied'
    """

    blocks: Annotated[int, Range(ge=2)]
    residual: ResidualCount = 0

    ABOUT = About(
        name="block-diagonal",
        family=projection.FAMILY,
        summary="each block of outputs reads one block of inputs",
        paper="Dao et al. 2022, arXiv 2204.00595",
        layers=projection.LAYERS,
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The smallest number of blocks that fits."""
        blocks = sizes.block(shape, fraction)
        return None if blocks is None else cls(blocks=blocks)

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The blocks and the correction; refused where a side has fewer entries than there are blocks."""
        rows_OI = projection.matrix(weight, site)
        if min(rows_OI.shape) < self.blocks:
            raise NotApplicable(f"{tuple(rows_OI.shape)} has a side with fewer than {self.blocks} entries, one for each block")
        map = Diagonal(self.blocks)
        form = Tied.of(map, weight, map.base(weight.shape))
        return projection.finished(form, weight, self.residual, f"{self.blocks} blocks")
