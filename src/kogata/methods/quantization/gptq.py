"""GPTQ: rounding that makes up for its own errors.

Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ", ICLR 2023 (2210.17323), equation 2; Frantar and Alistarh, "Optimal Brain
Compression" (2208.11580):
    argmin_q (w − q) H (w − q)ᵀ,  H = XᵀX / rows + λ mean(diag XᵀX / rows),
greedily, one column after another, the one with the largest H_jj first (``kernels/obq.py``). The scale of each group is the
best of several under the errors that the columns will cost. Then, in turn, the scales are fitted by least squares under the
codes, and each code is chosen anew given all others: the error only falls.
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
    """Round to 2**bits levels with the least error of the layer's output on the calibration data.

    ``bits``, ``group`` and ``symmetric`` are those of RoundToNearest; the groups of the kept values of a mask are consecutive
    kept values, and what was pruned stays zero. ``damping`` times its mean diagonal is added to the gram of the inputs.
    ``rounds`` of scales and codes in turn follow; with 0 it is plain GPTQ.

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
        summary="one-shot rounding that makes up for its errors through the inverse Hessian",
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
        """Codes under the scale of each group."""
        layer = layer_of(weight, site, stats, self.damping)
        return rounded(layer, weight.shape, bits=self.bits, group=self.group, symmetric=self.symmetric, rounds=self.rounds)
