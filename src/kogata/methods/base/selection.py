"""Which of the selected weights a method works on, and why it leaves the others alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from kogata.errors import NotApplicable
from kogata.forms import Role
from kogata.job import Job, Site
from kogata.methods.base.method import About
from kogata.network.sites import selected_sites


def follow(
    about: About, accepts: frozenset[Role], leaves: frozenset[Role], roles: Mapping[Site, frozenset[Role]], job: Job,
    unfit: Collection[Site] = (),
) -> Mapping[Site, frozenset[Role]]:  # fmt: skip
    """The roles after a method that puts ``leaves`` in the place of the leaves it accepts, at the selected sites.

    Those that are ``unfit`` for another reason stay as they are. Raises NotApplicable when there is no such site.
    """
    after, reasons = dict(roles), dict[str, None]()
    for site in selected_sites(job):
        if site.kind not in about.layers:
            reasons[f"{site.name} is {site.kind}"] = None
        elif site in unfit:
            reasons[f"{site.name} is unfit"] = None
        elif not roles[site] & accepts:
            reasons[f"{site.name} holds {role_words(roles[site])}"] = None
        else:
            after[site] = (roles[site] - accepts) | leaves
    if after == roles and len(reasons) == len(selected_sites(job)):
        raise NotApplicable(
            f"{about.name}: it takes {role_words(accepts)} of {', '.join(about.layers)} layers, but at this "
            f"point of the chain {'; '.join(list(reasons)[:5])}. Structure comes first, then sparsity, then precision."
        )
    return after


def role_words(roles: Iterable[Role]) -> str:
    return " or ".join(sorted(roles))
