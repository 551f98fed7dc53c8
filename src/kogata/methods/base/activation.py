"""Methods that quantize what flows into layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from kogata.errors import NotApplicable
from kogata.job import Job, Row, Site
from kogata.methods.base.method import Method
from kogata.network import surgery
from kogata.network.quantizers import Quantizer, attach_quantizer, layer_of
from kogata.network.sites import form_at, selected_sites


class ActivationMethod(Method):
    """Puts a quantizer on the input of each selected linear or convolutional layer."""

    @abstractmethod
    def quantizers(self, job: Job, layers: Mapping[Site, nn.Module]) -> Mapping[Site, Quantizer | str]:
        """One for each of ``layers`` (of ``job.model``), or the reason why there is none."""

    def apply(self, job: Job) -> Job:
        """Attach them; raises NotApplicable when no selected site is the weight of such a layer."""
        model = surgery.clone(job.model)
        chosen = selected_sites(job)
        layers = {site: layer for site in chosen if (layer := layer_of(job.model, site)) is not None}
        found = dict.fromkeys(chosen, "it is not the weight of a linear or convolutional layer") | dict(
            self.quantizers(job, layers)
        )
        rows: list[Row] = []
        for site, quantizer in found.items():
            note = quantizer if isinstance(quantizer, str) else ""
            if isinstance(quantizer, Quantizer):
                weight = next(model.get_submodule(site.module).parameters())
                attach_quantizer(model.get_submodule(site.module), quantizer.to(weight.device))
            bits = form_at(model, site).stored_bits()
            rows.append(Row(method=self.ABOUT.name, site=site.name, bits_before=bits, bits_after=bits, note=note))
        if all(row.note for row in rows):
            reasons = "; ".join(f"{row.site}: {row.note}" for row in rows)
            raise NotApplicable(f"{self.ABOUT.name}: nothing to do. {reasons}.")
        return replace(job, model=model, ledger=(*job.ledger, *rows))
