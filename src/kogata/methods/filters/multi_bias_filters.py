"""Multi-bias activation: several filters share their weights and differ only in their biases.

Li, Ouyang, Wang, "Multi-Bias Non-linear Activation in Deep Neural Networks", ICML 2016 (1604.00676), section 3:
    y_k = ReLU(b ∗ x + β_k),  k = 1 … K,
so the map of one filter is thresholded at several levels. The least-squares filter for K trained filters is their mean; each
keeps its own bias, or that of the normalization after it. Lowered to ordinary layers, the convolution has 1/K of the filters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self, final

from torch import Tensor

from kogata.calibration.stats import Stat, Stats
from kogata.forms import Form, Role
from kogata.forms.filter_maps import Repeat
from kogata.job import Kind, Site
from kogata.methods.base.guards import ResidualRank, Tolerance
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.filters import transfer
from kogata.methods.kernels import sizes
from kogata.settings import Range


@final
@dataclass(frozen=True, kw_only=True)
class MultiBiasFilters(WeightMethod):
    """Replace groups of ``biases`` (2 or more) similar filters by one filter with several biases.

    ``tolerance``, above 0, is the largest relative error of the layer's outputs on the calibration data; None allows any error.
    ``residual`` is the rank of an added low-rank correction: a count, 0 for none, or a fraction of the full rank in (0, 1).
    Layers with a number of filters that ``biases`` does not divide stay as they are.

    >>> from kogata import only
    >>> from kogata.methods import MultiBiasFilters
    >>> from kogata.testing.models import job_of
    >>> job = only(MultiBiasFilters(biases=4), "deep").apply(job_of("conv"))
    >>> job.model.deep.parametrizations.weight[0].describe()
    'permuted(tied)'
    """

    biases: Annotated[int, Range(ge=2)] = 2
    tolerance: Tolerance = None
    residual: ResidualRank = 0

    ABOUT = About(
        name="multi-bias-filters",
        family="filters",
        summary="several filters become one filter with several biases",
        paper="Li et al. 2016, arXiv 1604.00676",
        layers=(Kind.CONV,),
        needs=frozenset({Stat.GRAM}),
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The smallest size of a group that divides the number of filters and fits."""
        counts = (n for n in range(2, shape[0] + 1) if shape[0] % n == 0)
        biases = next((n for n in counts if sizes.tied(shape, fraction, 1 / n)), None)
        return None if biases is None else cls(biases=biases)

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The most similar groups; refused where they do not divide the number of filters, and above the tolerance."""
        transfer.refuse_unless_shareable(weight, site, stats, self.biases)
        map = Repeat(self.biases)
        order = transfer.grouped(transfer.distances(transfer.transforms(map, weight, self.biases), weight))
        form = transfer.tied(map, weight, (len(weight) // self.biases, *weight.shape[1:]), order)
        return transfer.within(form, weight, site, stats, self.tolerance, self.residual)
