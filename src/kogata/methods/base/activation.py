"""Methods that quantize the input activations of layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from kogata.calibration.normalization import renewed
from kogata.job import Job, Site
from kogata.methods.base.method import Method
from kogata.methods.base.selection import refuse_idle, rows_of
from kogata.network import surgery
from kogata.network.quantizers import Quantizer, attach_quantizer, layer_of
from kogata.network.sites import selected_sites


class ActivationMethod(Method):
    """Puts a quantizer on the input of each selected linear or convolutional layer."""

    @abstractmethod
    def quantizers(self, job: Job, layers: Mapping[Site, nn.Module]) -> Mapping[Site, Quantizer | str]:
        """For each of ``layers`` (modules of ``job.model``), its quantizer, or the reason why it gets none."""

    def apply(self, job: Job) -> Job:
        """Attach the quantizers; raises NotApplicable when no selected site is the weight of such a layer."""
        model = surgery.clone(job.model)
        chosen = selected_sites(job)
        layers = {site: layer for site in chosen if (layer := layer_of(job.model, site)) is not None}
        found = dict.fromkeys(chosen, "it is not the weight of a linear or convolutional layer") | dict(
            self.quantizers(job, layers)
        )
        notes = {site: quantizer if isinstance(quantizer, str) else "" for site, quantizer in found.items()}
        refuse_idle(self.ABOUT.name, {site.name: note for site, note in notes.items()})
        for site, quantizer in found.items():
            if isinstance(quantizer, Quantizer):
                weight = next(model.get_submodule(site.module).parameters())
                attach_quantizer(model.get_submodule(site.module), quantizer.to(weight.device))
        rows = rows_of(self.ABOUT.name, job.model, model, notes)
        return renewed(job, replace(job, model=model, ledger=(*job.ledger, *rows)))
