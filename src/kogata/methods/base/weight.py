"""Methods that replace leaves of weights by smaller forms, one weight at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from kogata.calibration.gather import gather
from kogata.calibration.probe import Probe
from kogata.calibration.stats import Gathered, Stat, Stats
from kogata.errors import DataError, NotApplicable
from kogata.forms import Dense, Form, Role
from kogata.forms.base import squared_distance
from kogata.job import Job, Row, Site
from kogata.methods.base.method import About, Method
from kogata.methods.base.selection import follow, role_words
from kogata.network import surgery
from kogata.network.sites import form_at, leaves_of, selected_sites


class WeightMethod(Method):
    """Replaces leaves of weights by smaller forms, one weight at a time."""

    ABOUT: ClassVar[About]
    NEEDS: ClassVar[frozenset[Stat]] = frozenset()  # statistics it reads, gathered in one pass
    ACCEPTS: ClassVar[frozenset[Role]]  # the leaves it may replace
    LEAVES: ClassVar[frozenset[Role]]  # the leaves it puts in their place

    @abstractmethod
    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """A form close to ``weight`` (float32, of a leaf of ``site``). Raises NotApplicable with the reason it has none."""

    def apply(self, job: Job) -> Job:
        """Encode every selected leaf that the method accepts and that becomes smaller by it."""
        model = surgery.clone(job.model)
        with closing(gather(job, selected_sites(job), self.NEEDS, model)) as gathered:
            return self.encode_each(job, model, gathered)

    @final
    def encode_each(self, job: Job, model: nn.Module, gathered: Iterable[tuple[Site, Gathered]]) -> Job:
        """The job with ``model``, a clone of its own, in which every site of ``gathered`` has been encoded in turn.

        For methods that decide for all layers together: they gather first, and then encode on what they gathered.
        """
        probe = Probe(job)
        rows = [self._replace(job, model, site, found, probe) for site, found in gathered]
        if not any(row.note == "" for row in rows):
            reasons = "; ".join(f"{row.site}: {row.note}" for row in rows)
            raise NotApplicable(f"{self.ABOUT.name}: nothing to do. {reasons}.")
        return replace(job, model=model, ledger=(*job.ledger, *rows))

    def _replace(self, job: Job, model: nn.Module, site: Site, found: Gathered, probe: Probe) -> Row:
        """Encode the leaves of one site in ``model``, and say what came of it."""
        before, form = form_at(job.model, site), form_at(model, site)
        note, done, errors = "", False, 0.0
        norm = 0.0
        for path, leaf, part in list(leaves_of(form, site)):
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
        after = form_at(model, site)
        return Row(
            method=self.ABOUT.name, site=site.name, bits_before=bits, bits_after=after.stored_bits(),
            predicted=errors / norm if norm else 0.0, loss=probe.change(site, after),
        )  # fmt: skip

    def _encode(self, weight: Tensor, leaf: Dense, site: Site, stats: Stats) -> tuple[Form | None, str]:
        """The smaller form for one leaf, or None and the reason."""
        if site.kind not in self.ABOUT.layers:
            return None, f"it is for {', '.join(self.ABOUT.layers)} layers, this is {site.kind}"
        if leaf.role not in self.ACCEPTS:
            return None, f"it takes {role_words(self.ACCEPTS)}, but the steps before left {leaf.role}"
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
