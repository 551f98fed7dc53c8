"""Which methods leave the same kind of thing behind, so that one of them can stand for all as the first of two steps.

Nothing here is listed by hand: a method that leaves something new is a kind of its own from its first run on.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache

from torch import nn

from kogata import surgery
from kogata.activations import quantizers
from kogata.forms import Form
from kogata.method import Method
from kogata.methods import METHODS
from tests.contract.cases import CASES, REFUSED
from tests.contract.models import job_of
from tests.contract.trial import applied


def marks(model: nn.Module) -> Hashable:
    """All that a later method meets in a model, save for its numbers.

    That is: which trees of forms there are, with the role, number of dimensions and stored type of their leaves; how the
    inputs of layers are quantized; the shapes of the weights.
    """
    sites = surgery.sites(model)
    return (
        frozenset(_tree(surgery.form_at(model, site)) for site in sites),
        frozenset(type(quantizer) for _, quantizer in quantizers(model)),
        tuple((site.name, site.shape) for site in sites),
    )


def _tree(form: Form) -> Hashable:
    leaves = tuple((path, leaf.role, leaf.shape, leaf.planes()["values"].spec.dtype) for path, leaf in form.leaves())
    return form.describe(), tuple((path, role, len(shape), dtype) for path, role, shape, dtype in leaves)


@cache
def first_steps() -> Sequence[type[Method]]:
    """One method for each kind of thing that methods leave of the convolutional model, and those that refuse that model.

    None for those that leave it as it was, in other numbers: what comes after them is what comes first, tested alone.
    """
    found: dict[Hashable, type[Method] | None] = {marks(job_of("conv").model): None}
    for kind in METHODS:
        found.setdefault(kind if (kind, "conv") in REFUSED else marks(applied(kind, "conv").model), kind)
    return [kind for kind in found.values() if kind is not None]


@cache
def second_steps() -> Sequence[type[Method]]:
    """One method for each way to take up what a first step left: by base classes, accepted roles and statistics."""
    found: dict[Hashable, type[Method]] = {}
    for kind, case in CASES.items():
        found.setdefault((kind.__bases__, getattr(case, "ACCEPTS", None), getattr(case, "NEEDS", None)), kind)
    return list(found.values())
