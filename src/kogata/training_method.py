"""Methods that need training: each begins a :class:`kogata.train.Regime` and, as a step of a chain, trains and finishes it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from kogata import activations, surgery
from kogata.activations import LatentQuantizer
from kogata.errors import NotApplicable
from kogata.forms import Dense, Latent, Role
from kogata.job import Job, Row, Site, Task, Where
from kogata.method import Method, follow
from kogata.train import Regime

if TYPE_CHECKING:
    from kogata.methods.distillation.recover import Recover


@dataclass(frozen=True, kw_only=True)
class Target:
    """One leaf to be trained: where it is, and the leaf. ``site.shape`` is that of the tensor that it stands for."""

    site: Site
    path: str
    leaf: Dense


class TrainingMethod(Method):
    """Trains leaves of weights into smaller forms. Concrete ones have the training's settings in a field ``recover``."""

    ACCEPTS: ClassVar[frozenset[Role]]  # the leaves it trains
    LEAVES: ClassVar[frozenset[Role]]  # the leaves it leaves in their place
    if TYPE_CHECKING:  # a field of each method: that module cannot be imported here, for its package imports this one
        recover: Recover

    @abstractmethod
    def regime(self, model: nn.Module, targets: Sequence[Target]) -> Regime:
        """Prepare ``model``, which is the caller's to change, for the training of ``targets``.

        Raises NotApplicable with the reason when it can do nothing for them.
        """

    def unfit(self, model: nn.Module, sites: Sequence[Site]) -> Mapping[Site, str]:
        """The sites that must be left alone, and why, beyond their kind and what the steps before left."""
        return {}

    def begin(self, model: nn.Module, where: Where | None = None) -> Regime:
        """A copy of ``model`` under this method, for a loop of one's own. Raises NotApplicable as ``apply`` does."""
        job = Job(model=model, reference=model, task=Task(calibration=()), where=() if where is None else (where,))
        return self._begin(job, self._selection(job))

    def apply(self, job: Job) -> Job:
        """Train under the regime and finish it; raises DataError without training data."""
        chosen = self._selection(job)
        regime = self._begin(job, chosen)
        epochs = self.recover.train(regime, job, self.ABOUT.name)
        model = regime.finish()
        rows = tuple(
            Row(
                method=self.ABOUT.name, site=site.name, bits_before=surgery.form_at(job.model, site).stored_bits(),
                bits_after=surgery.form_at(model, site).stored_bits(), note=note,
            )
            for site, note in chosen
        )  # fmt: skip
        return replace(job, model=model, epochs=epochs, ledger=(*job.ledger, *rows))

    def check(self, roles: Mapping[Site, frozenset[Role]], job: Job) -> Mapping[Site, frozenset[Role]]:
        """Follow the roles through this method; raises NotApplicable when no selected site has a leaf it accepts."""
        return follow(self.ABOUT, self.ACCEPTS, self.LEAVES, roles, job, self._unfit(job))

    def _begin(self, job: Job, chosen: Sequence[tuple[Site, str]]) -> Regime:
        if all(note for _, note in chosen):
            reasons = "; ".join(f"{site.name}: {note}" for site, note in chosen)
            raise NotApplicable(f"{self.ABOUT.name}: nothing to do. {reasons}.")
        model = surgery.clone(job.model, share=False)
        targets = [
            Target(site=part, path=path, leaf=leaf)
            for site, note in chosen if not note
            for path, leaf, part in surgery.leaves(surgery.form_at(model, site), site) if leaf.role in self.ACCEPTS
        ]  # fmt: skip
        try:
            return self.regime(model, targets)
        except NotApplicable as error:
            raise NotApplicable(f"{self.ABOUT.name}: {error}.") from error

    def _unfit(self, job: Job) -> Mapping[Site, str]:
        return self.unfit(job.model, [site for site in surgery.selected(job) if site.kind in self.ABOUT.layers])

    def _selection(self, job: Job) -> list[tuple[Site, str]]:
        """Each selected site, with the reason why it is left alone, if it is."""
        found: list[tuple[Site, str]] = []
        unfit = self._unfit(job)
        for site in surgery.selected(job):
            roles = {leaf.role for _, leaf in surgery.form_at(job.model, site).leaves()}
            if site.kind not in self.ABOUT.layers:
                note = f"it is for {', '.join(self.ABOUT.layers)} layers, this is {site.kind}"
            elif not roles & self.ACCEPTS:
                note = f"it takes {' or '.join(sorted(self.ACCEPTS))}, but the steps before left {' or '.join(sorted(roles))}"
            else:
                note = unfit.get(site, "")
            found.append((site, note))
        return found


class LatentRegime(Regime):
    """Numbers that are quantized in every forward: each target's leaf becomes a :class:`Latent`, and then what it froze to.

    So does the input of each layer that comes with a quantizer.
    """

    def __init__(
        self,
        model: nn.Module,
        latents: Sequence[tuple[Target, Latent]],
        flows: Sequence[tuple[nn.Module, LatentQuantizer]] = (),
    ) -> None:
        super().__init__(model)
        for target, latent in latents:
            surgery.replace(model, target.site, target.path, latent)
        for layer, quantizer in flows:
            activations.attach(layer, quantizer.to(next(layer.parameters()).device))
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
            activations.attach(layer, quantizer.freeze().to(next(layer.parameters()).device))
        return self.model


class PreciseRegime(LatentRegime):
    """One whose numbers are finer than the bfloat16 of autocast."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model makes of its inputs, without autocast."""
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return super().forward(*args, **kwargs)
