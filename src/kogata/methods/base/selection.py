"""Which of the selected weights a method works on, why it leaves the others alone, and the ledger rows that record it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import cast

from torch import nn

from kogata.errors import NotApplicable
from kogata.forms import Form, Role
from kogata.job import Job, Row, Site
from kogata.methods.base.method import About, Method
from kogata.network.sites import form_at, selected_sites


def reason_against(method: Method, site: Site, roles: Collection[Role]) -> str:
    """The reason why ``method`` leaves alone a site whose leaves have these roles; empty when it works on the site."""
    if reason := wrong_kind(method.ABOUT, site):
        return reason
    if not method.accepts & frozenset(roles):
        return f"it takes {role_words(method.accepts)}, but earlier steps left {role_words(roles)}"
    return ""


def wrong_kind(about: About, site: Site) -> str:
    """The reason why a method is not meant for the layer of a site; empty when it is."""
    if 0 in site.shape:
        return f"it holds no numbers: its shape is {site.shape}"
    return "" if site.kind in about.layers else f"it is for {', '.join(about.layers)} layers, this is {site.kind}"


def notes_of(method: Method, job: Job, unfit: Mapping[Site, str] | None = None) -> dict[Site, str]:
    """Each selected site with the reason why ``method`` leaves it alone; empty where it works on the site.

    ``unfit`` gives the reasons for sites that the method refuses beyond their kind and roles; these reasons come first.
    """
    own = unfit or {}
    return {site: own.get(site) or reason_against(method, site, roles_at(job.model, site)) for site in selected_sites(job)}


def roles_at(model: nn.Module, site: Site) -> frozenset[Role]:
    """The roles of the leaves that hold a site's weight."""
    return frozenset(leaf.role for _, leaf in form_at(model, site).leaves())


def refuse_idle(name: str, notes: Mapping[str, str] | Iterable[Row]) -> None:
    """Raises NotApplicable, listing all reasons, when every site has one and the method ``name`` would change nothing."""
    reasons = cast("Mapping[str, str]", notes) if isinstance(notes, Mapping) else {row.site: row.note for row in notes}
    if all(reasons.values()):
        listed = "; ".join(f"{names}: {note}" for note, names in by_reason(reasons).items()) or "no weight is selected"
        raise NotApplicable(f"{name}: nothing to do. {listed}.")


def by_reason(reasons: Mapping[str, str], most: int = 5) -> dict[str, str]:
    """Each reason with the names that have it: ``most`` of them, and how many others. Amounts in brackets make no difference.

    >>> by_reason({"a": "too small (8 bytes)", "b": "too small (4 bytes)", "c": "a bias"})
    {'too small': 'a, b', 'a bias': 'c'}
    >>> by_reason(dict.fromkeys("abcdefgh", "a bias"), most=3)
    {'a bias': 'a, b, c and 5 others'}
    """
    alike: dict[str, list[str]] = {}
    for name, note in reasons.items():
        alike.setdefault(note.partition(" (")[0], []).append(name)
    return {
        reasons[names[0]] if len(names) == 1 else note:
        ", ".join(names[:most]) + (f" and {len(names) - most} others" if len(names) > most else "")
        for note, names in alike.items()
    }  # fmt: skip


def row_of(name: str, site: Site, before: Form, after: Form, note: str = "", predicted: float | None = None) -> Row:
    """The row of the ledger for a site that the method ``name`` gave the form ``after``, or left alone because of ``note``."""
    return Row(
        method=name, site=site.name, bits_before=before.stored_bits(), bits_after=after.stored_bits(), predicted=predicted,
        note=note,
    )  # fmt: skip


def rows_of(name: str, before: nn.Module, after: nn.Module, notes: Mapping[Site, str]) -> tuple[Row, ...]:
    """The rows of several sites, from the models before and after the method ``name``. Their weights keep their shapes."""
    return tuple(row_of(name, site, form_at(before, site), form_at(after, site), note) for site, note in notes.items())


def follow(
    method: Method, roles: Mapping[Site, frozenset[Role]], sites: Iterable[Site], unfit: Collection[Site] = (),
) -> Mapping[Site, frozenset[Role]]:  # fmt: skip
    """The roles after ``method`` has worked on ``sites``, without running it.

    Sites in ``unfit`` stay as they are. Raises NotApplicable when there are sites and the method can work on none of them.
    Where nothing is selected, the step itself says so when it runs.
    """
    after, reasons, worked = dict(roles), dict[str, None](), False
    for site in sites:
        if site.kind not in method.ABOUT.layers:
            reasons[f"{site.name} is {site.kind}"] = None
        elif site in unfit:
            reasons[f"{site.name} is unfit"] = None
        elif not roles[site] & method.accepts:
            reasons[f"{site.name} holds {role_words(roles[site])}"] = None
        else:
            worked = True
            if method.leaves != method.accepts:  # otherwise each leaf keeps its role
                after[site] = (roles[site] - method.accepts) | method.leaves
    if reasons and not worked:
        raise NotApplicable(
            f"{method.ABOUT.name}: it takes {role_words(method.accepts)} of {', '.join(method.ABOUT.layers)} layers, but at "
            f"this point of the chain {'; '.join(list(reasons)[:5])}. Structure comes first, then sparsity, then precision."
        )
    return after


def role_words(roles: Iterable[Role]) -> str:
    """Roles as an error message lists them."""
    return " or ".join(sorted(roles))
