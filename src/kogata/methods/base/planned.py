"""Methods that decide for all layers together: one threshold, one price of a bit, one budget of ranks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar, final

from torch import Tensor

from kogata.calibration.gather import gather
from kogata.calibration.stats import Gradients, Stat, Stats
from kogata.forms import Form
from kogata.job import Job, Site
from kogata.methods.base.selection import reason_against
from kogata.methods.base.weight import Encode, WeightMethod
from kogata.network.sites import form_at, leaves_of

Plan = TypeVar("Plan")


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedLeaf:
    """A leaf that a plan decides on, with what is known of it in the model before any layer is changed.

    ``site`` is the weight that it belongs to, ``part`` the same with the shape of the tensor that the leaf stands for, and
    ``weight`` its values in float32 on the CPU.
    """

    site: Site
    part: Site
    weight: Tensor
    stats: Stats


class PlannedMethod(WeightMethod, Generic[Plan]):
    """Decides for all selected leaves together, then encodes each of them by that plan.

    ``encode`` is what the method does to a leaf without a plan: when it decides layer by layer, or has only one.
    """

    @abstractmethod
    def decide(self, job: Job, leaves: Iterator[PlannedLeaf]) -> Plan:
        """The plan for ``leaves``, those that the method accepts of ``job.model``.

        They come one at a time, and the inputs of a layer are dropped when the next one comes, so a method keeps of each only
        what it decides by. Raises NotApplicable when no plan meets the settings.
        """

    @abstractmethod
    def encode_planned(self, plan: Plan, weight: Tensor, site: Site, stats: Stats) -> Form:
        """As ``encode``, by the plan; inputs are now those that the layers before leave after their change."""

    @final
    def encoder(self, job: Job, sites: Sequence[Site], gradients: Mapping[str, Gradients]) -> Encode:
        """Look at all leaves of ``sites``, decide, and encode by what was decided."""
        with closing(self._leaves(job, sites, gradients)) as leaves:
            return partial(self.encode_planned, self.decide(job, leaves))

    def _leaves(
        self, job: Job, sites: Sequence[Site], gradients: Mapping[str, Gradients]
    ) -> Generator[PlannedLeaf, None, None]:
        """Each leaf that the method accepts."""
        needs = self.needs - {Stat.CROSS}  # nothing has changed yet, so that there is nothing to compare with
        with closing(gather(job, dict.fromkeys(sites, needs), job.model, gradients)) as gathered:
            for site, found in gathered:
                root = form_at(job.model, site)
                for path, leaf, part in leaves_of(root, site):
                    if not reason_against(self, site, {leaf.role}):
                        weight = leaf.values.detach().float().cpu()
                        yield PlannedLeaf(site=site, part=part, weight=weight, stats=found.of(root, path))
