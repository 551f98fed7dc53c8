"""Which methods leave the same kind of thing behind, so that one of them can stand for all as the first of two steps.

Nothing here is listed by hand: a method that leaves something new is a kind of its own from its first run on.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache

from kogata.job import Job
from kogata.methods import METHODS
from kogata.methods.base.method import Method
from kogata.network.quantizers import quantizers_of
from kogata.network.sites import form_at, sites_of
from kogata.testing.models import job_of
from tests.contract.cases import REFUSED
from tests.contract.subjects import applied


def marks(job: Job) -> Hashable:
    """The kind of thing that a later method meets in a job's model.

    That is: which trees of forms there are, with the roles of their leaves; how the inputs of layers are quantized; whether
    weights lost channels, or the model layers. How large factors are, and of how many dimensions, is not part of it.
    """
    sites, original = sites_of(job.model), sites_of(job.reference)
    forms = [form_at(job.model, site) for site in sites]
    return (
        frozenset((form.describe(), frozenset(leaf.role for _, leaf in form.leaves())) for form in forms),
        frozenset(type(quantizer) for _, quantizer in quantizers_of(job.model)),
        [site.shape for site in sites] == [site.shape for site in original],
    )


@cache
def first_steps() -> Sequence[type[Method]]:
    """One method for each kind of thing that methods leave of the convolutional model, and those that refuse that model.

    None for those that leave it as it was, in other numbers: what comes after them is what comes first, tested alone.
    """
    found: dict[Hashable, type[Method] | None] = {marks(job_of("conv")): None}
    for kind in METHODS:
        found.setdefault(kind if (kind, "conv") in REFUSED else marks(applied(kind, "conv")), kind)
    return [kind for kind in found.values() if kind is not None]
