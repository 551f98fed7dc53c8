"""Global average pooling in place of a dense head, as a form of the head's weight.

Lin, Chen, Yan, "Network In Network", ICLR 2014 (1312.4400), section 3.2, average each feature map before the classifier. A
linear layer on C flattened maps of P positions does the same if its weight is W'[o, c] r[p] with r = 1/P. On inputs with G =
XᵀX, and with the averaging matrix R[c, (c, p)] = r[p], the least-squares W' is
    min ‖X Wᵀ − X (W' R)ᵀ‖²:   W' = W G Rᵀ (R G Rᵀ)⁻¹.
The file therefore loads into the original class. Training afterwards may also change r, which all maps share.
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

POOLED = "oc,p->ocp"  # the weight of each output for each map, and the weight of each position


@final
@dataclass(frozen=True, kw_only=True)
class GlobalPooling(WeightMethod):
    """Give each output one weight for each feature map, in place of one for each position of the map.

    ``places`` is the number of positions of a map, height times width (2 or more). The inputs must be flattened maps with the
    channel as the slowest axis. Restrict the method to the head that reads them, as in ``only(GlobalPooling(places=16),
    "fc1")``. Layers with a number of inputs that ``places`` does not divide stay as they are.

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
        """The least-squares fit on the calibration data; where the inputs cannot be seen, the sum over the positions."""
        if weight.ndim != 2:
            raise NotApplicable(f"a factor of shape {tuple(weight.shape)} is not a head that reads feature maps")
        outputs, inputs = weight.shape
        maps = inputs // self.places
        if inputs % self.places:
            raise NotApplicable(f"its {inputs} inputs do not divide into maps of {self.places} positions")
        average_CI = torch.eye(maps, dtype=torch.float64).repeat_interleave(self.places, 1) / self.places
        gram_II = torch.eye(inputs, dtype=torch.float64) if stats.gram_GII is None else stats.gram_GII[0].double()
        seen_CI = average_CI @ gram_II
        head_OC = torch.linalg.lstsq(seen_CI @ average_CI.T, seen_CI @ weight.double().T, driver="gelsd").solution.T
        window_P = torch.full((self.places,), 1 / self.places)
        parts = [Dense(head_OC.to(weight.dtype).contiguous(), Role.MATRIX), Dense(window_P.to(weight.dtype), Role.VALUES)]
        return Product(POOLED, parts, (outputs, inputs))
