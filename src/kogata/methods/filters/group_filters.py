"""Group convolution: filters are shared over rotations by 90° (p4), or over rotations and reflections (p4m).

Cohen, Welling, "Group Equivariant Convolutional Networks", ICML 2016 (1602.07576), section 6:
    [f ∗ ψ](g) = Σ_{y, k} f_k(y) ψ_k(g⁻¹ y)                        for images (the lifting layer),
    [f ∗ ψ](g) = Σ_{h, k} f_k(h) ψ_k(g⁻¹ h)                        for maps that are themselves indexed by the group,
so rotating the image rotates and permutes the maps: the layer is equivariant. Both are convolutions in which filter (o, g) is
filter o transformed by g; in the second case g also permutes its input channels. The least-squares filter for a trained layer
is the mean of its filters after the inverse transforms. The layers for training from scratch are in ``kogata.nn.filters``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from kogata.calibration.stats import Stat, Stats
from kogata.forms import Form, Role
from kogata.forms.base import squared_distance
from kogata.forms.filter_maps import Orbit
from kogata.job import Kind, Site
from kogata.methods.base.guards import ResidualRank, Tolerance
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.filters import transfer
from kogata.methods.kernels import sizes


@final
@dataclass(frozen=True, kw_only=True)
class GroupFilters(WeightMethod):
    """Replace groups of 4 or, with ``mirrored``, 8 similar filters by the rotations and reflections of one filter.

    Input channels are treated as plain images or as maps indexed by the group, whichever has the smaller error. ``tolerance``,
    above 0, is the largest relative error of the layer's outputs on the calibration data; None allows any error. ``residual``
    is the rank of an added low-rank correction: a count, 0 for none, or a fraction of the full rank in (0, 1). Layers with a
    non-square kernel or with a number of filters that the group does not divide stay as they are.

    >>> from kogata import only
    >>> from kogata.methods import GroupFilters
    >>> from kogata.testing.models import job_of
    >>> job = only(GroupFilters(mirrored=True), "deep").apply(job_of("conv"))
    >>> job.model.deep.parametrizations.weight[0].describe()
    'permuted(tied)'
    """

    mirrored: bool = False
    tolerance: Tolerance = None
    residual: ResidualRank = 0

    ABOUT = About(
        name="group-filters",
        family="filters",
        summary="filters are shared over rotations and reflections",
        paper="Cohen and Welling 2016, arXiv 1602.07576",
        layers=(Kind.CONV,),
        needs=frozenset({Stat.GRAM}),
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The form holds a quarter of the numbers, or with reflections an eighth."""
        copies = next((n for n in (4, 8) if sizes.tied(shape, fraction, 1 / n)), None)
        return None if copies is None else cls(mirrored=copies == 8)

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The most similar groups; refused for kernels that are not square, and above the tolerance."""
        images, maps = (Orbit(self.mirrored, stacked) for stacked in (False, True))
        transfer.refuse_unless_shareable(weight, site, stats, images.order)
        transfer.refuse_unless_square(weight, "turning a filter")
        candidates = (images,) if weight.shape[1] % maps.order else (images, maps)
        forms = [self._projected(weight, map) for map in candidates]
        form = min(forms, key=lambda form: squared_distance(form.dense().detach(), weight))
        return transfer.within(form, weight, site, stats, self.tolerance, self.residual)

    def _projected(self, weight: Tensor, map: Orbit) -> Form:
        order = transfer.grouped(transfer.distances(transfer.transforms(map, weight, map.order), weight))
        return transfer.tied(map, weight, (len(weight) // map.order, *weight.shape[1:]), order)
