"""Methods that need training.

Each wraps the model in a TrainingWrapper; as a step of a chain it also trains and finishes it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kogata.calibration.normalization import renewed
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
    """One leaf to be trained, with its site and its path in the form. ``site.shape`` is that of the tensor it stands for."""

    site: Site
    path: str
    leaf: Dense


class TrainingMethod(Method):
    """Trains leaves of weights into smaller forms.

    Concrete methods have a field ``recover`` with the settings of the training.
    """

    if TYPE_CHECKING:  # a field of each concrete method; importing it here at run time would be circular
        recover: Recover

    @abstractmethod
    def wrap(self, model: nn.Module, targets: Sequence[TrainedLeaf]) -> TrainingWrapper:
        """Wrap ``model`` for the training of ``targets``. The model is a private copy and may be changed.

        Raises NotApplicable with the reason when the targets cannot be trained.
        """

    def unfit(self, model: nn.Module, sites: Sequence[Site]) -> Mapping[Site, str]:
        """Sites that the method refuses although their kind and roles are accepted, each with the reason."""
        return {}

    def begin(self, model: nn.Module, where: Where | None = None) -> TrainingWrapper:
        """A copy of ``model`` wrapped for training by this method in a training loop of your own.

        Train the wrapper in place of the model: add ``penalty()`` to the loss, call ``step(progress)`` after each step of the
        optimizer with the fraction of the training done, and ``finish()`` at the end. Raises NotApplicable as ``apply`` does.
        """
        job = Job(model=model, reference=model, task=Task(calibration=()), where=() if where is None else (where,))
        return self._begin(job, notes_of(self, job, self._unfit(job)))

    def apply(self, job: Job) -> Job:
        """Train under the wrapper and finish it; raises DataError without training data.

        Running statistics are trained too. They then move only by what finishing changes, such as a last projection.
        """
        notes = notes_of(self, job, self._unfit(job))
        wrapper = self._begin(job, notes)
        epochs = self.recover.train(wrapper, job, self.ABOUT.name)
        trained = surgery.clone(wrapper.model)
        model = wrapper.finish()
        rows = rows_of(self.ABOUT.name, job.model, model, notes)
        after = replace(job, model=model, epochs=epochs, ledger=(*job.ledger, *rows))
        return renewed(replace(job, model=trained), after)

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
    """Trains numbers that every forward pass quantizes.

    During the training each target's leaf is a :class:`Latent`; ``finish`` replaces it by its frozen form. The inputs of the
    layers in ``flows`` are quantized by the quantizer given for each, which is frozen in the same way.
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
        """Call ``step`` of each latent weight and quantizer, while the gradients are still there."""
        for _, part in (*self._latents, *self._flows):
            part.step()

    def finish(self) -> nn.Module:
        """The model with its latent weights and its quantizers frozen."""
        for target, latent in self._latents:
            surgery.replace(self.model, target.site, target.path, latent.freeze())
        for layer, quantizer in self._flows:
            attach_quantizer(layer, quantizer.freeze().to(next(layer.parameters()).device))
        return self.model


class PreciseWrapper(LatentWrapper):
    """A LatentWrapper that computes without autocast, because its quantization steps are finer than bfloat16."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the model, computed without autocast."""
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return super().forward(*args, **kwargs)
