"""Methods that need training: each wraps a model in a TrainingWrapper and, as a step of a chain, trains and finishes it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kogata.errors import NotApplicable
from kogata.forms import Dense, Latent, Role
from kogata.job import Job, Site, Task, Where
from kogata.methods.base.method import Method
from kogata.methods.base.selection import follow, notes_of, refuse_idle, rows_of
from kogata.network import surgery
from kogata.network.quantizers import LatentQuantizer, attach_quantizer
from kogata.network.sites import form_at, leaves_of, selected_sites
from kogata.training.wrapper import TrainingWrapper

if TYPE_CHECKING:
    from kogata.methods.recover import Recover


@dataclass(frozen=True, kw_only=True)
class TrainedLeaf:
    """One leaf to be trained: where it is, and the leaf. ``site.shape`` is that of the tensor that it stands for."""

    site: Site
    path: str
    leaf: Dense


class TrainingMethod(Method):
    """Trains leaves of weights into smaller forms. Concrete ones have the training's settings in a field ``recover``."""

    if TYPE_CHECKING:  # a field of each method: that module cannot be imported here, for its package imports this one
        recover: Recover

    @abstractmethod
    def wrap(self, model: nn.Module, targets: Sequence[TrainedLeaf]) -> TrainingWrapper:
        """Prepare ``model``, which is the caller's to change, for the training of ``targets``.

        Raises NotApplicable with the reason when it can do nothing for them.
        """

    def unfit(self, model: nn.Module, sites: Sequence[Site]) -> Mapping[Site, str]:
        """The sites that must be left alone, and why, beyond their kind and what the steps before left."""
        return {}

    def begin(self, model: nn.Module, where: Where | None = None) -> TrainingWrapper:
        """A copy of ``model`` under this method, for a loop of one's own. Raises NotApplicable as ``apply`` does."""
        job = Job(model=model, reference=model, task=Task(calibration=()), where=() if where is None else (where,))
        return self._begin(job, notes_of(self, job, self._unfit(job)))

    def apply(self, job: Job) -> Job:
        """Train under the wrapper and finish it; raises DataError without training data."""
        notes = notes_of(self, job, self._unfit(job))
        wrapper = self._begin(job, notes)
        epochs = self.recover.train(wrapper, job, self.ABOUT.name)
        model = wrapper.finish()
        rows = rows_of(self.ABOUT.name, job.model, model, notes)
        return replace(job, model=model, epochs=epochs, ledger=(*job.ledger, *rows))

    def check(self, roles: Mapping[Site, frozenset[Role]], job: Job) -> Mapping[Site, frozenset[Role]]:
        """Follow the roles through this method; raises NotApplicable when no selected site has a leaf it accepts."""
        return follow(self, roles, selected_sites(job), self._unfit(job))

    def _begin(self, job: Job, notes: Mapping[Site, str]) -> TrainingWrapper:
        refuse_idle(self.ABOUT.name, {site.name: note for site, note in notes.items()})
        model = surgery.clone(job.model, share=False)
        targets = [
            TrainedLeaf(site=part, path=path, leaf=leaf)
            for site, note in notes.items() if not note
            for path, leaf, part in leaves_of(form_at(model, site), site) if leaf.role in self.accepts
        ]  # fmt: skip
        try:
            return self.wrap(model, targets)
        except NotApplicable as error:
            raise NotApplicable(f"{self.ABOUT.name}: {error}.") from error

    def _unfit(self, job: Job) -> Mapping[Site, str]:
        return self.unfit(job.model, [site for site in selected_sites(job) if site.kind in self.ABOUT.layers])


class LatentWrapper(TrainingWrapper):
    """Numbers that are quantized in every forward: each target's leaf becomes a :class:`Latent`, and then what it froze to.

    So does the input of each layer that comes with a quantizer.
    """

    def __init__(
        self,
        model: nn.Module,
        latents: Sequence[tuple[TrainedLeaf, Latent]],
        flows: Sequence[tuple[nn.Module, LatentQuantizer]] = (),
    ) -> None:
        super().__init__(model)
        for target, latent in latents:
            surgery.replace(model, target.site, target.path, latent)
        for layer, quantizer in flows:
            attach_quantizer(layer, quantizer.to(next(layer.parameters()).device))
        self._latents, self._flows = list(latents), list(flows)

    def step(self, progress: float) -> None:
        """Let each latent weight look at its gradient, and each quantizer mind its own parameters."""
        for _, part in (*self._latents, *self._flows):
            part.step()

    def finish(self) -> nn.Module:
        """The model, its latent weights and its quantizers frozen."""
        for target, latent in self._latents:
            surgery.replace(self.model, target.site, target.path, latent.freeze())
        for layer, quantizer in self._flows:
            attach_quantizer(layer, quantizer.freeze().to(next(layer.parameters()).device))
        return self.model


class PreciseWrapper(LatentWrapper):
    """One whose numbers are finer than the bfloat16 of autocast."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model makes of its inputs, without autocast."""
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return super().forward(*args, **kwargs)
