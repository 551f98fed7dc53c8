"""Global average pooling in place of a dense head, as a form of the head's weight.

Lin, Chen, Yan, "Network In Network", ICLR 2014 (1312.4400), section 3.2, averages each feature map before the classes are told
apart. A linear layer on C flattened maps of P places does so when its weight is W'[o, c] r[p] with r = 1/P, and the nearest W',
on inputs with G = XᵀX and with the averaging R[c, (c, p)] = r[p], is
    min ‖X Wᵀ − X (W' R)ᵀ‖²:   W' = W G Rᵀ (R G Rᵀ)⁻¹.
So the file loads into the original class, and a later training may weigh the places differently, alike for all maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, final

import torch
from torch import Tensor

from kogata.calibration.stats import Stat, Stats
from kogata.errors import NotApplicable
from kogata.forms import Dense, Form, Product, Role
from kogata.job import Kind, Site
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.settings import Range

POOLED = "oc,p->ocp"  # what a class takes of each map, the weight of each place


@final
@dataclass(frozen=True, kw_only=True)
class GlobalPooling(WeightMethod):
    """One number for each output and feature map, in place of one for each place of the map.

    ``places`` is the number of places of a map, height times width, where the maps are flattened: channels are the slowest.
    Restrict it to the head that reads them, as in ``only(GlobalPooling(places=16), "fc1")``.

    >>> from kogata import only
    >>> from kogata.methods import GlobalPooling
    >>> from kogata.testing.models import job_of
    >>> job = only(GlobalPooling(places=4), "hidden").apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'product'
    """

    places: Annotated[int, Range(ge=2, example=49)]

    ABOUT = About(
        name="global-pooling",
        family="distillation",
        summary="a dense head reads the mean of each feature map",
        paper="Lin et al. 2014, arXiv 1312.4400",
        layers=(Kind.LINEAR,),
        needs=frozenset({Stat.GRAM}),
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX, Role.VALUES}),
    )

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The nearest on the calibration data, where the layer's inputs can be seen; else the sum over the places."""
        if weight.ndim != 2:
            raise NotApplicable(f"a factor of shape {tuple(weight.shape)} is no head that reads maps")
        outputs, inputs = weight.shape
        maps = inputs // self.places
        if inputs % self.places:
            raise NotApplicable(f"its {inputs} inputs are no maps of {self.places} places")
        average_CI = torch.eye(maps, dtype=torch.float64).repeat_interleave(self.places, 1) / self.places
        gram_II = torch.eye(inputs, dtype=torch.float64) if stats.gram_GII is None else stats.gram_GII[0].double()
        seen_CI = average_CI @ gram_II
        head_OC = torch.linalg.lstsq(seen_CI @ average_CI.T, seen_CI @ weight.double().T, driver="gelsd").solution.T
        window_P = torch.full((self.places,), 1 / self.places)
        parts = [Dense(head_OC.to(weight.dtype).contiguous(), Role.MATRIX), Dense(window_P.to(weight.dtype), Role.VALUES)]
        return Product(POOLED, parts, (outputs, inputs))
