"""Methods that encode one weight at a time: each leaf is replaced by a smaller form."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor, nn

from kogata.calibration.gather import gather, gradients_of
from kogata.calibration.normalization import renewed
from kogata.calibration.probe import Probe, most_changed
from kogata.calibration.stats import Gathered, Gradients, Stats, power
from kogata.errors import DataError, NotApplicable
from kogata.forms import Dense, Form, Role
from kogata.forms.base import squared_distance
from kogata.job import Job, Row, Site
from kogata.methods.base.method import Method
from kogata.methods.base.selection import follow, reason_against, refuse_idle, row_of
from kogata.network import surgery
from kogata.network.sites import form_at, leaves_of, selected_sites

Encode = Callable[[Tensor, Site, Stats], Form]


class WeightMethod(Method):
    """Replaces leaves of weights by smaller forms, one weight at a time."""

    @abstractmethod
    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """A form that approximates ``weight``, the float32 values of a leaf of ``site``, using its statistics ``stats``.

        Raises NotApplicable, with the reason, when the method has no form for this weight.
        """

    def encoder(self, job: Job, sites: Sequence[Site], gradients: Mapping[str, Gradients]) -> Encode:
        """The function that encodes the leaves of ``sites``: ``encode``, unless a subclass makes a plan for all sites first.

        ``gradients`` holds the gradient statistics of the sites, by name.
        """
        return self.encode

    def apply(self, job: Job) -> Job:
        """Encode every selected leaf that the method accepts and makes smaller."""
        return encode_sites(job, [(self, selected_sites(job))])

    def check(self, roles: Mapping[Site, frozenset[Role]], job: Job) -> Mapping[Site, frozenset[Role]]:
        """Follow the roles through this method; raises NotApplicable when no selected site has a leaf it accepts."""
        return follow(self, roles, selected_sites(job))


def encode_sites(
    job: Job, plan: Sequence[tuple[WeightMethod, Sequence[Site]]], gradients: Mapping[str, Gradients] | None = None
) -> Job:
    """The job after each method of ``plan`` has encoded its sites.

    One pass over the calibration data gathers, for each site, the statistics that its method needs. The inputs of a layer are
    those produced by the already compressed layers before it, and batch normalization follows them. Gradients are the given
    ones, by the name of the site, or gathered before. No site may belong to two methods. Raises NotApplicable, listing all
    reasons, when no site changes.
    """
    model = surgery.clone(job.model)
    needs = {site: method.needs for method, sites in plan for site in sites}
    gradients = gradients_of(job, needs) if gradients is None else gradients
    encoders = [(method, method.encoder(job, sites, gradients), sites) for method, sites in plan]
    by_site = {site: (method, encode) for method, encode, sites in encoders for site in sites}
    rows, changes = list[Row](), dict[Site, float]()
    with closing(gather(job, needs, model, gradients)) as gathered:
        for site, found in gathered:
            row, changes[site] = _encode_site(job, model, site, *by_site[site], found)
            rows.append(row)
    refuse_idle(" and ".join(dict.fromkeys(method.ABOUT.name for method, _ in plan)), rows)
    losses = _losses(job, model, {site: change for site, change in changes.items() if change})
    rows = [replace(row, loss=losses.get(row.site)) for row in rows]
    return renewed(job, replace(job, model=model, ledger=(*job.ledger, *rows)))


def _encode_site(
    job: Job, model: nn.Module, site: Site, method: WeightMethod, encode: Encode, found: Gathered
) -> tuple[Row, float]:
    """Encode the leaves of one site in ``model``; return its row of the ledger and the squared error of its weight."""
    before, form = form_at(job.model, site), form_at(model, site)
    note, done, errors, norm, increase = "", False, 0.0, 0.0, None
    for path, leaf, part in list(leaves_of(form, site)):
        weight = leaf.values.detach().float().cpu()  # methods encode on the CPU; the form then moves to the leaf's device
        norm += float(torch.linalg.vector_norm(weight)) ** 2
        stats = found.of(before, path)
        smaller, reason = _encode_leaf(method, encode, weight, leaf, part, stats)
        if smaller is None:
            note = note or reason
            continue
        surgery.replace(model, site, path, smaller)
        now = smaller if path else form_at(model, site)  # of a whole weight, with a padding row that stays zero
        with torch.no_grad():
            changed = now.dense().cpu()
            errors += squared_distance(changed, weight)
            if stats.sensitivity is not None:
                increase = (increase or 0.0) + _increase(changed - weight, part, stats, stats.sensitivity)
        done = True
    if not done:
        return row_of(method.ABOUT.name, site, before, before, note), 0.0
    predicted = errors / norm if norm else 0.0
    row = row_of(method.ABOUT.name, site, before, form_at(model, site), predicted=predicted)
    return replace(row, increase=increase), errors


def _increase(error: Tensor, part: Site, stats: Stats, sensitivity: float) -> float:
    """The predicted increase of the loss of a sample from an error of a leaf, ½ F tr(E G Eᵀ)."""
    if stats.gram_GII is None:
        return sensitivity / 2 * float(error.double().square().sum())
    if stats.position is not None:
        error = error.new_zeros(torch.Size(part.shape).numel()).scatter(0, stats.position, error.flatten())
    return sensitivity / 2 * power(error, stats.gram_GII)


def _encode_leaf(
    method: WeightMethod, encode: Encode, weight: Tensor, leaf: Dense, site: Site, stats: Stats
) -> tuple[Form | None, str]:
    """The smaller form for one leaf, or None and the reason why the leaf stays."""
    if reason := reason_against(method, site, {leaf.role}):
        return None, reason
    try:
        form = encode(weight, site, stats)
    except NotApplicable as error:
        return None, str(error)
    if not all(torch.isfinite(part.values).all() for _, part in form.leaves()):
        raise DataError(f"{method.ABOUT.name}: {site.name} of shape {site.shape} became NaN or infinite.")
    form = form.to(leaf.values.dtype)
    if form.stored_bits() >= leaf.stored_bits():
        return None, f"it would not get smaller ({leaf.stored_bits() / 8:.0f} → {form.stored_bits() / 8:.0f} bytes)"
    return form, ""


def _losses(job: Job, model: nn.Module, changes: Mapping[Site, float]) -> dict[str, float]:
    """The increase of the loss by the name of the site, for the largest changes of ``model``, each measured alone."""
    if not job.explain:
        return {}
    probe = Probe(job)
    return {site.name: probe.change(site, form_at(model, site)) for site in most_changed(changes)}
