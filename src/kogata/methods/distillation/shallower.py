"""A shallower student: some layers of a stack are removed and the others keep their weights, ready for distillation.

Sanh, Debut, Chaumond, Wolf, "DistilBERT", 2019 (1910.01108), section 3, starts a student from every other layer of its
teacher; of a run of n like layers, k stay here, spread evenly with the first and the last among them:
    i_j = round(j (n − 1) / (k − 1)),   j = 0 … k − 1.
A layer can be removed where its input can replace its output: between blocks of equal layers, as in transformers and residual
networks. The file records which entries of which list remain, and loads into the original class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Annotated, final

from torch import nn

from kogata.calibration.normalization import renewed
from kogata.calibration.probe import Probe, most_changed
from kogata.errors import NotApplicable, UsageError
from kogata.forms import Role
from kogata.job import Job, Row
from kogata.methods.base.method import About, Method
from kogata.methods.base.selection import refuse_idle
from kogata.network import depth, surgery
from kogata.network.batch import call, evaluating, tensors
from kogata.network.sites import form_at, selected_sites, sites_of
from kogata.settings import Range


@final
@dataclass(frozen=True, kw_only=True)
class Shallower(Method):
    """Remove layers from lists (``nn.ModuleList``, ``nn.Sequential``) of equal layers. The result is an ordinary model.

    ``keep`` is the number of layers to keep of each run of equal layers (int ≥ 1), or the indices of all entries of the list to
    keep, from 0 in ascending order. ``lists`` is a glob on the path of the list, such as ``encoder.layer``; a model that is
    itself a list has the path ``""``. An entry with a weight that is not selected stays. Raises NotApplicable when no layer can
    be removed or the model fails without the layers. The other layers keep their weights; running statistics of batch
    normalization follow their inputs.

    >>> from kogata.methods import Shallower
    >>> from kogata.testing.models import job_of
    >>> job = Shallower(keep=2).apply(job_of("stack"))
    >>> len(job.model.blocks)
    2
    """

    keep: Annotated[int, Range(ge=1)] | tuple[Annotated[int, Range(ge=0)], ...]
    lists: str = "*"

    ABOUT = About(
        name="shallower",
        family="distillation",
        summary="remove layers of a stack, keep the others as they are",
        paper="Sanh et al. 2019, arXiv 1910.01108",
        data=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.keep, tuple) and (not self.keep or sorted(set(self.keep)) != list(self.keep)):
            raise UsageError(f"shallower: keep is {list(self.keep)}; expected indices from 0 in ascending order.")

    def apply(self, job: Job) -> Job:
        """Remove the layers. With ``job.explain``, measure the increase of the loss for the largest of them, each alone."""
        gone = [
            entry for path, layers in depth.lists(job.model) if fnmatchcase(path, self.lists)
            for stays in [self._stays(path, layers)] for entry in _entries(path, layers) if entry.place not in stays
        ]  # fmt: skip
        held = _unselected(job) if gone else set[str]()
        notes = {entry: "not all of its weights are selected" if entry.name in held else "" for entry in gone}
        unlisted = {self.lists: f"no list of this path holds more than {self.keep} layers in a row that are alike"}
        refuse_idle(self.ABOUT.name, {entry.name: note for entry, note in notes.items()} or unlisted)
        dropped = [entry for entry, note in notes.items() if not note]
        probe = Probe(job)
        model = _without(job, dropped)
        if reason := _failure(model, probe):
            names = ", ".join(entry.name for entry in dropped)
            raise NotApplicable(f"shallower: without {names} the model {reason}. Choose layers with like inputs and outputs.")
        bits = _bits_within(job.model)
        sizes = {entry: bits.get(entry.name, 0.0) for entry in dropped}
        losses = {entry: _loss(job, entry, probe) for entry in most_changed(sizes)} if job.explain else {}
        rows = [
            Row(
                method=self.ABOUT.name, site=entry.name, bits_before=sizes.get(entry, 0.0), bits_after=0.0, note=note,
                loss=losses.get(entry),
            )
            for entry, note in notes.items()
        ]  # fmt: skip
        return renewed(job, replace(job, model=model, ledger=(*job.ledger, *rows)))

    def _stays(self, path: str, layers: depth.Layers) -> set[int]:
        """The indices of the entries of a list to keep."""
        now = depth.places(layers)
        if not isinstance(self.keep, int):
            if missing := [place for place in self.keep if place not in now]:
                raise NotApplicable(
                    f"shallower: list {path!r} holds no entries {missing}, but {list(now)}; let 'lists' name one to shorten."
                )
            return set(self.keep)
        stays = set[int]()
        for _, group in groupby(zip(now, layers, strict=True), key=lambda pair: _kind(pair[1])):
            run = list(group)
            count = min(self.keep, len(run)) if any(True for _ in run[0][1].parameters()) else len(run)
            stays |= {run[round(j * (len(run) - 1) / max(1, count - 1))][0] for j in range(count)}
        return stays


@dataclass(frozen=True)
class _Entry:
    """An entry of the list at ``path``, with its index in the original list and its own path."""

    path: str
    place: int
    name: str


def _kind(layer: nn.Module) -> tuple[type[nn.Module], str, tuple[tuple[str, tuple[int, ...]], ...]]:
    """What equal layers have in common: class, printed settings, and the shapes of their parameters."""
    return type(layer), repr(layer), tuple((name, tuple(tensor.shape)) for name, tensor in layer.named_parameters())


def _entries(path: str, layers: depth.Layers) -> Iterator[_Entry]:
    for place, (name, _) in zip(depth.places(layers), layers.named_children(), strict=True):
        yield _Entry(path, place, f"{path}.{name}" if path else name)


def _unselected(job: Job) -> set[str]:
    """The paths of all modules that contain, at any depth, a matrix that is not selected."""
    chosen = set(selected_sites(job))
    found = set[str]()
    for site in sites_of(job.model):
        if site not in chosen and site.role is Role.MATRIX:
            for name in (site.name, *site.aliases):
                parts = name.split(".")
                found |= {".".join(parts[:end]) for end in range(1, len(parts))}
    return found


def _bits_within(model: nn.Module) -> dict[str, float]:
    """The estimated bits of the weights within each module, by path. A tied weight counts only where all its users are."""
    found: dict[str, float] = {}
    for site in sites_of(model):
        bits = form_at(model, site).stored_bits()
        around = [[name[:end] for end, sign in enumerate(name) if sign == "."] for name in (site.name, *site.aliases)]
        for path in set(around[0]).intersection(*around[1:]):
            found[path] = found.get(path, 0.0) + bits
    return found


def _loss(job: Job, entry: _Entry, probe: Probe) -> float | None:
    """The increase of the loss when this entry alone is removed; None where the model fails without it."""
    single = _without(job, [entry])
    return None if _failure(single, probe) else probe.loss(single) - probe.base


def _without(job: Job, dropped: Sequence[_Entry]) -> nn.Module:
    """A copy of the model without these entries. Inner lists come first, because removal renumbers the outer ones."""
    twin = surgery.clone(job.model)
    for path, layers in reversed(list(depth.lists(job.model))):
        gone = [entry.place for entry in dropped if entry.path == path]
        if gone:
            depth.keep(twin, path, [place for place in depth.places(layers) if place not in gone])
    return twin


def _failure(model: nn.Module, probe: Probe) -> str:
    """Why the model fails without the removed layers; empty if its outputs have the same shapes as before."""
    try:
        with evaluating(model):
            found = [tensor.shape for tensor in tensors(call(model, probe.inputs))]
    except Exception as failure:  # the user's forward may raise anything
        return f"fails: {type(failure).__name__}: {failure}"
    wanted = [tensor.shape for tensor in tensors(probe.wanted)]
    return "" if found == wanted else f"gives shapes {[tuple(s) for s in found]} instead of {[tuple(s) for s in wanted]}"
