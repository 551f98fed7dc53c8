"""Block-diagonal weights: each stretch of outputs reads only the stretch of inputs opposite to it.

Dao et al., ICML 2022 (2204.00595), section 3, whose Monarch matrices are made of two of them; a grouped layer, Krizhevsky et
al., NeurIPS 2012:
    W = diag(W_1, …, W_b),   ‖W − W̃‖² the squared entries beside the blocks.
The nearest such matrix keeps the blocks as they are. It loses all that passes between blocks: add a residual, or train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable, UsageError
from kogata.forms import Form, Role
from kogata.forms.structured_maps import Diagonal
from kogata.forms.tied import Tied
from kogata.job import Site
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.structured import projection


@final
@dataclass(frozen=True, kw_only=True)
class BlockDiagonal(WeightMethod):
    """Keep ``blocks`` blocks down the diagonal, and a matrix of rank ``residual`` for the rest, 0 for none.

    Where ``blocks`` does not divide a side, the last blocks run past its end and are cropped.
    """

    blocks: int
    residual: int = 0

    ABOUT = About(
        name="block-diagonal",
        family=projection.FAMILY,
        summary="each stretch of outputs reads one stretch of inputs",
        paper="Dao et al. 2022, arXiv 2204.00595",
        layers=projection.LAYERS,
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )
    GRID: ClassVar[Mapping[str, tuple[int, ...]]] = {"blocks": (2, 4, 8, 16)}

    def __post_init__(self) -> None:
        if self.blocks < 2:
            raise UsageError(f"block-diagonal: blocks is {self.blocks}; expected 2 or more.")
        projection.check_residual("block-diagonal", self.residual)

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The blocks and the residual; refused where a side has fewer entries than there are blocks."""
        rows_OI = projection.matrix(weight, site)
        if min(rows_OI.shape) < self.blocks:
            raise NotApplicable(f"{tuple(rows_OI.shape)} has a side of fewer than {self.blocks} entries, one for each block")
        map = Diagonal(self.blocks)
        form = Tied.of(map, weight, map.base(weight.shape))
        return projection.finished(form, weight, self.residual, f"{self.blocks} blocks")
