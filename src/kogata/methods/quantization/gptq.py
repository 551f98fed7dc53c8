"""GPTQ: rounding column by column, with later columns compensating for the errors of earlier ones.

Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ", ICLR 2023 (2210.17323), equation 2; Frantar and Alistarh, "Optimal Brain
Compression" (2208.11580):
    argmin_q (w − q) H (w − q)ᵀ,  H = XᵀX / rows + λ mean(diag XᵀX / rows),
solved greedily, one column after another in order of decreasing H_jj (``kernels/obq.py``). The scale of each group is the best
of several candidates, where each column is weighted by the cost of its errors. Then two steps alternate, neither of which
increases the error: the scales are fitted by least squares for fixed codes, and the codes are improved by coordinate descent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self, final

from torch import Tensor

from kogata.calibration.stats import Stat, Stats
from kogata.forms import Form, Role
from kogata.job import Site
from kogata.methods.base.guards import Bits, Damping, Group
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels import sizes
from kogata.methods.kernels.compensated import layer_of, rounded
from kogata.settings import Range


@final
@dataclass(frozen=True, kw_only=True)
class GPTQ(WeightMethod):
    """Round weights to 2**bits levels, minimizing the error of the layer's outputs on the calibration data.

    ``bits``, ``group`` and ``symmetric`` are those of RoundToNearest. Under a mask, groups consist of consecutive kept values,
    and pruned weights stay zero. ``damping``, above 0, is added to the diagonal of the Gram matrix of the inputs, relative to
    its mean. ``rounds`` is how often scales and codes are refined afterwards; 0 is plain GPTQ. Weights whose inputs cannot be
    observed stay as they are. Raises DataError when a weight is NaN or infinite.

    >>> from kogata import only
    >>> from kogata.methods import GPTQ
    >>> from kogata.testing.models import job_of
    >>> job = only(GPTQ(bits=4, group=32), "hidden").apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'affine'
    """

    bits: Bits
    group: Group = None
    symmetric: bool = False
    damping: Damping = 0.01
    rounds: Annotated[int, Range(ge=0)] = 1

    ABOUT = About(
        name="gptq",
        family="quantization",
        summary="one-shot rounding that compensates for its errors through the inverse Hessian",
        paper="Frantar et al. 2022, arXiv 2210.17323 and 2208.11580",
        needs=frozenset({Stat.GRAM}),
        accepts=frozenset({Role.MATRIX, Role.VALUES}),
        leaves=frozenset({Role.SCALE}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The most bits that leave room for the scale and the zero point of each row."""
        bits = sizes.bits(shape, fraction)
        return None if bits is None else cls(bits=bits)

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """Codes, with a scale and a zero point for each group."""
        layer = layer_of(weight, site, stats, self.damping)
        return rounded(layer, weight.shape, bits=self.bits, group=self.group, symmetric=self.symmetric, rounds=self.rounds)
