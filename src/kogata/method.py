"""Methods: what may be done to a job. Composing methods gives a method."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor, nn

from kogata import calibrate, surgery
from kogata.errors import DataError, NotApplicable
from kogata.forms import Dense, Form, Role
from kogata.forms.base import squared_distance
from kogata.job import Job, Kind, Row, Site, Where
from kogata.stats import Gathered, Stat, Stats


@dataclass(frozen=True, kw_only=True)
class About:
    """One line of the survey's table of methods.

    The statistics that a weight method needs are read off its code; ``data`` says that another one looks at calibration data.
    """

    name: str
    family: str
    summary: str
    paper: str
    layers: tuple[Kind, ...] = tuple(Kind)
    data: bool = False
    labels: bool = False
    training: bool = False


class Method(ABC):
    """Turns a job into another one. Concrete methods are frozen, keyword-only dataclasses of their settings, and final."""

    ABOUT: ClassVar[About]

    @abstractmethod
    def apply(self, job: Job) -> Job:
        """The job after this method; the given job stays as it is. Raises NotApplicable when nothing can be done."""

    def steps(self) -> tuple[Method, ...]:
        """The method as a sequence of steps, each of which a run can checkpoint and report."""
        return (self,)

    def check(self, roles: Mapping[Site, frozenset[Role]], job: Job) -> Mapping[Site, frozenset[Role]]:
        """The roles of each site's leaves after this method, without running it; raises NotApplicable on an illegal order."""
        return roles

    def title(self) -> str:
        """What the method is called in tables and messages."""
        return self.ABOUT.name

    def settings(self) -> dict[str, Any]:
        """The settings as JSON values: what a recipe would have to say."""
        return {"method": self.ABOUT.name} | dataclasses.asdict(cast("Any", self))


class WeightMethod(Method):
    """Replaces leaves of weights by smaller forms, one weight at a time."""

    ABOUT: ClassVar[About]
    NEEDS: ClassVar[frozenset[Stat]] = frozenset()  # statistics it reads, gathered in one pass
    ACCEPTS: ClassVar[frozenset[Role]]  # the leaves it may replace
    LEAVES: ClassVar[frozenset[Role]]  # the leaves it puts in their place
    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {}  # the settings a search may try

    @abstractmethod
    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """A form close to ``weight`` (float32, of a leaf of ``site``). Raises NotApplicable with the reason it has none."""

    def apply(self, job: Job) -> Job:
        """Encode every selected leaf that the method accepts and that becomes smaller by it."""
        model = surgery.clone(job.model)
        with closing(calibrate.gather(job, surgery.selected(job), self.NEEDS, model)) as gathered:
            return self.encode_each(job, model, gathered)

    @final
    def encode_each(self, job: Job, model: nn.Module, gathered: Iterable[tuple[Site, Gathered]]) -> Job:
        """The job with ``model``, a clone of its own, in which every site of ``gathered`` has been encoded in turn.

        For methods that decide for all layers together: they gather first, and then encode on what they gathered.
        """
        probe = calibrate.Probe(job)
        rows = [self._replace(job, model, site, found, probe) for site, found in gathered]
        if not any(row.note == "" for row in rows):
            reasons = "; ".join(f"{row.site}: {row.note}" for row in rows)
            raise NotApplicable(f"{self.ABOUT.name}: nothing to do. {reasons}.")
        return replace(job, model=model, ledger=(*job.ledger, *rows))

    def _replace(self, job: Job, model: nn.Module, site: Site, found: Gathered, probe: calibrate.Probe) -> Row:
        """Encode the leaves of one site in ``model``, and say what came of it."""
        before, form = surgery.form_at(job.model, site), surgery.form_at(model, site)
        note, done, errors = "", False, 0.0
        norm = 0.0
        for path, leaf, part in list(surgery.leaves(form, site)):
            weight = leaf.values.detach().float().cpu()  # encoding is done once; the form goes to the leaf's device
            norm += float(torch.linalg.vector_norm(weight)) ** 2
            smaller, reason = self._encode(weight, leaf, part, found.of(before, path))
            if smaller is None:
                note = note or reason
                continue
            with torch.no_grad():
                errors += squared_distance(smaller.dense(), weight)
            surgery.replace(model, site, path, smaller)
            done = True
        bits = before.stored_bits()
        if not done:
            return Row(method=self.ABOUT.name, site=site.name, bits_before=bits, bits_after=bits, note=note)
        after = surgery.form_at(model, site)
        return Row(
            method=self.ABOUT.name, site=site.name, bits_before=bits, bits_after=after.stored_bits(),
            predicted=errors / norm if norm else 0.0, loss=probe.change(site, after),
        )  # fmt: skip

    def _encode(self, weight: Tensor, leaf: Dense, site: Site, stats: Stats) -> tuple[Form | None, str]:
        """The smaller form for one leaf, or None and the reason."""
        if site.kind not in self.ABOUT.layers:
            return None, f"it is for {', '.join(self.ABOUT.layers)} layers, this is {site.kind}"
        if leaf.role not in self.ACCEPTS:
            return None, f"it takes {_words(self.ACCEPTS)}, but the steps before left {leaf.role}"
        try:
            form = self.encode(weight, site, stats)
        except NotApplicable as error:
            return None, str(error)
        if not all(torch.isfinite(part.values).all() for _, part in form.leaves()):
            raise DataError(f"{self.ABOUT.name}: {site.name} of shape {site.shape} became NaN or infinite.")
        form = form.to(leaf.values.dtype)
        if form.stored_bits() >= leaf.stored_bits():
            return None, f"it would not get smaller ({leaf.stored_bits() / 8:.0f} → {form.stored_bits() / 8:.0f} bytes)"
        return form, ""

    def check(self, roles: Mapping[Site, frozenset[Role]], job: Job) -> Mapping[Site, frozenset[Role]]:
        """Follow the roles through this method; raises NotApplicable when no selected site has a leaf it accepts."""
        return follow(self.ABOUT, self.ACCEPTS, self.LEAVES, roles, job)


def follow(
    about: About, accepts: frozenset[Role], leaves: frozenset[Role], roles: Mapping[Site, frozenset[Role]], job: Job,
    unfit: Collection[Site] = (),
) -> Mapping[Site, frozenset[Role]]:  # fmt: skip
    """The roles after a method that puts ``leaves`` in the place of the leaves it accepts, at the selected sites.

    Those that are ``unfit`` for another reason stay as they are. Raises NotApplicable when there is no such site.
    """
    after, reasons = dict(roles), dict[str, None]()
    for site in surgery.selected(job):
        if site.kind not in about.layers:
            reasons[f"{site.name} is {site.kind}"] = None
        elif site in unfit:
            reasons[f"{site.name} is unfit"] = None
        elif not roles[site] & accepts:
            reasons[f"{site.name} holds {_words(roles[site])}"] = None
        else:
            after[site] = (roles[site] - accepts) | leaves
    if after == roles and len(reasons) == len(surgery.selected(job)):
        raise NotApplicable(
            f"{about.name}: it takes {_words(accepts)} of {', '.join(about.layers)} layers, but at this "
            f"point of the chain {'; '.join(list(reasons)[:5])}. Structure comes first, then sparsity, then precision."
        )
    return after


@final
@dataclass(frozen=True)
class Chain(Method):
    """One method after another. Made by :func:`chain`."""

    methods: tuple[Method, ...]

    def title(self) -> str:
        """The titles, joined by arrows."""
        return " → ".join(method.title() for method in self.methods)

    def settings(self) -> dict[str, Any]:
        """The settings of each method, in a list."""
        return {"steps": [method.settings() for method in self.methods]}

    def apply(self, job: Job) -> Job:
        """Each in turn."""
        for method in self.methods:
            job = method.apply(job)
        return job

    def steps(self) -> tuple[Method, ...]:
        """The steps of each, in turn."""
        return tuple(step for method in self.methods for step in method.steps())

    def check(self, roles: Mapping[Site, frozenset[Role]], job: Job) -> Mapping[Site, frozenset[Role]]:
        """Each in turn."""
        for method in self.methods:
            roles = method.check(roles, job)
        return roles


@final
@dataclass(frozen=True)
class Only(Method):
    """A method restricted to some sites. Made by :func:`only`."""

    method: Method
    where: Where

    def title(self) -> str:
        """The method's title."""
        return self.method.title()

    def settings(self) -> dict[str, Any]:
        """The method's settings and where it works; a restriction says only what it restricts."""
        default, where = dataclasses.asdict(Where()), dataclasses.asdict(self.where)
        changed = {
            key: [str(part) for part in value] if isinstance(value, tuple) else value
            for key, value in where.items()
            if value != default[key]
        }
        return self.method.settings() | {"where": changed}

    def apply(self, job: Job) -> Job:
        """Apply within the restriction, then lift it."""
        return replace(self.method.apply(job.within(self.where)), where=job.where)

    def steps(self) -> tuple[Method, ...]:
        """The steps of the method, each under the same restriction."""
        return tuple(Only(step, self.where) for step in self.method.steps())

    def check(self, roles: Mapping[Site, frozenset[Role]], job: Job) -> Mapping[Site, frozenset[Role]]:
        """Check within the restriction."""
        return self.method.check(roles, job.within(self.where))


def chain(*methods: Method) -> Method:
    """One method after another: structure, then sparsity, then precision, each followed by a recovery if wanted."""
    return Chain(methods)


def only(method: Method, where: Where | str) -> Method:
    """The method on some sites only: a :class:`Where`, or one glob on the names of weights or layers.

    >>> from kogata.methods import RoundToNearest
    >>> only(RoundToNearest(bits=8), "classifier.*").where.layers
    ('classifier.*',)
    """
    return Only(method, Where(layers=(where,)) if isinstance(where, str) else where)


def per_site(plan: Mapping[str, Method]) -> Method:
    """A method for each glob, in order, such as the outcome of a search."""
    return chain(*(only(method, glob) for glob, method in plan.items()))


def _words(roles: Iterable[Role]) -> str:
    return " or ".join(sorted(roles))
