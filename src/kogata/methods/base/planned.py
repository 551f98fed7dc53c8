"""Methods that decide for all layers together, such as one pruning threshold or one budget of ranks for the whole model."""

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
    """A leaf that a plan decides on, with its statistics in the model before any layer is changed.

    ``site`` is the weight that the leaf belongs to, ``path`` its place in the tree, and ``part`` the same site with the shape
    of the tensor that the leaf stands for. ``weight`` holds the values of the leaf, float32 on the CPU.
    """

    site: Site
    path: str
    part: Site
    weight: Tensor
    stats: Stats


class PlannedMethod(WeightMethod, Generic[Plan]):
    """Makes a plan for all selected leaves together, then encodes each of them by that plan.

    ``encode`` encodes a single leaf without a plan. It is used when the settings ask for a decision layer by layer.
    """

    @abstractmethod
    def decide(self, job: Job, leaves: Iterator[PlannedLeaf]) -> Plan:
        """The plan for ``leaves``, which are the leaves of ``job.model`` that the method accepts.

        Leaves come one at a time, and the inputs of a layer are dropped when the next one comes. A method should keep only what
        its decision needs. Raises NotApplicable when no plan meets the settings.
        """

    @abstractmethod
    def encode_planned(self, plan: Plan, weight: Tensor, site: Site, stats: Stats) -> Form:
        """Like ``encode``, but by the plan. The statistics are now those behind the already compressed layers."""

    @final
    def encoder(self, job: Job, sites: Sequence[Site], gradients: Mapping[str, Gradients]) -> Encode:
        """Visit all leaves of ``sites``, make the plan, and return the function that encodes a leaf by it."""
        with closing(planned_leaves(self, job, sites, gradients)) as leaves:
            return partial(self.encode_planned, self.decide(job, leaves))


def planned_leaves(
    method: WeightMethod, job: Job, sites: Sequence[Site], gradients: Mapping[str, Gradients]
) -> Generator[PlannedLeaf, None, None]:
    """Each leaf of ``sites`` that the method accepts, in the model before any layer is changed."""
    needs = method.needs - {Stat.CROSS}  # no layer has changed yet, so both models have the same inputs
    with closing(gather(job, dict.fromkeys(sites, needs), job.model, gradients)) as gathered:
        for site, found in gathered:
            root = form_at(job.model, site)
            for path, leaf, part in leaves_of(root, site):
                if not reason_against(method, site, {leaf.role}):
                    weight = leaf.values.detach().float().cpu()
                    yield PlannedLeaf(site=site, path=path, part=part, weight=weight, stats=found.of(root, path))
