"""Quantized activations, without training: the inputs of layers are rounded to n bits.

Vanhoucke, Senior, Mao, "Improving the speed of neural networks on CPUs", 2011, section 3, use 8-bit weights and activations
with sums in 32-bit integers: ``chain(RoundToNearest(bits=8, symmetric=True), StaticActivations(bits=8))``. The quantizer is
that of Jacob et al. 2018 (1712.05877), equation 1:  q(x) = s (clamp(⌊x / s⌉ + z, 0, 2ᵇ − 1) − z),
    static   s and z of a layer from calibration data:  [low, high] = r [min x, max x] with the r that has the least mean
             squared error (Banner et al. 2019, 1810.05723, find it in closed form for known distributions)
    dynamic  s and z of each tensor, or each token, from its own smallest and largest value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, final

import torch
from torch import Tensor, nn

from kogata.calibration.batches import calibration_batches
from kogata.errors import DataError
from kogata.job import Job, Kind, Site
from kogata.methods.base.activation import ActivationMethod
from kogata.methods.base.method import About
from kogata.network.batch import call, evaluating
from kogata.network.quantizers import MAX_BITS, Dynamic, Granularity, Quantizer, Static
from kogata.settings import Range

RATIOS = torch.linspace(0.1, 1.0, 91, dtype=torch.float32)  # fractions r of the range that are tried


SAMPLE = 1 << 14  # number of values of each batch used to measure the error


@final
@dataclass(frozen=True, kw_only=True)
class StaticActivations(ActivationMethod):
    """Quantize the inputs of layers to ``bits`` (1 to 16), with one scale and zero point for each layer.

    Both are fixed after one pass over the calibration data. Raises DataError when inputs are NaN or infinite, and NotApplicable
    when no selected weight belongs to a linear or convolutional layer.

    >>> from kogata.methods import StaticActivations
    >>> from kogata.testing.models import job_of
    >>> job = StaticActivations(bits=8).apply(job_of("conv"))
    >>> [name for name, _ in job.model.hidden.named_children()]
    ['input_quantizer']
    """

    bits: Annotated[int, Range(ge=1, le=MAX_BITS)]

    ABOUT = About(
        name="static-activations",
        family="quantization",
        summary="n-bit inputs of layers, with a fixed range from calibration data",
        paper="Vanhoucke et al. 2011; Jacob et al. 2018, arXiv 1712.05877",
        layers=(Kind.LINEAR, Kind.CONV),
        data=True,
    )

    def quantizers(self, job: Job, layers: Mapping[Site, nn.Module]) -> Mapping[Site, Quantizer | str]:
        """For each layer, the quantizer with the least squared error on its calibration inputs."""
        seen = {site: _Seen(site) for site in layers}
        handles = [layer.register_forward_pre_hook(seen[site], with_kwargs=True) for site, layer in layers.items()]
        try:
            with evaluating(job.model) as model:
                for inputs, _ in calibration_batches(job.model, job.task):
                    call(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
        return {site: static(part.values(), self.bits) if part.parts else "it never runs" for site, part in seen.items()}


@final
@dataclass(frozen=True, kw_only=True)
class DynamicActivations(ActivationMethod):
    """Quantize the inputs of layers to ``bits`` (1 to 16), with the range of each tensor measured at run time.

    With ``granularity`` "token", each row along the last axis has its own range; this is possible for linear layers only.
    Raises NotApplicable when no selected weight belongs to a layer that can be quantized.

    >>> from kogata.methods import DynamicActivations
    >>> from kogata.testing.models import job_of
    >>> job = DynamicActivations(bits=8).apply(job_of("conv"))
    >>> [name for name, _ in job.model.hidden.named_children()]
    ['input_quantizer']
    """

    bits: Annotated[int, Range(ge=1, le=MAX_BITS)]
    granularity: Granularity = Granularity.TENSOR

    ABOUT = About(
        name="dynamic-activations",
        family="quantization",
        summary="n-bit inputs of layers, with the range measured at each call",
        paper="Jacob et al. 2018, arXiv 1712.05877",
        layers=(Kind.LINEAR, Kind.CONV),
    )

    def quantizers(self, job: Job, layers: Mapping[Site, nn.Module]) -> Mapping[Site, Quantizer | str]:
        """The same quantizer for each layer; per-token ranges are refused for convolutions."""
        return {
            site: Dynamic(bits=self.bits, granularity=self.granularity)
            if site.kind is Kind.LINEAR or self.granularity is Granularity.TENSOR
            else "images have no tokens"
            for site in layers
        }


class _Seen:
    """A sample of the inputs of one layer, which includes the extremes of each batch."""

    def __init__(self, site: Site) -> None:
        self.site, self.parts = site, list[Tensor]()

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record a sample of one call. This is a forward pre-hook."""
        x = (args[0] if args else kwargs["input"]).detach().float().flatten().cpu()
        if not x.numel():
            return
        extremes = torch.stack(x.aminmax())
        if not torch.isfinite(extremes).all():
            raise DataError(f"calibration: the inputs of {self.site.name} are NaN or infinite; check the data.")
        self.parts.append(torch.cat([extremes, x[:: -(-len(x) // SAMPLE)]]))

    def values(self) -> Tensor:
        """All recorded values, ``[N]``."""
        return torch.cat(self.parts)


def static(values: Tensor, bits: int) -> Static:
    """The quantizer with the least squared error on ``values`` (``[N]``), among ranges that are fractions of theirs."""
    low, high, levels = float(values.min().clamp(max=0)), float(values.max().clamp(min=0)), 2**bits - 1
    if low == high:
        return Static(torch.ones(1, dtype=torch.float32), bits=bits, zero=0)  # all values are zero, so the scale is arbitrary
    zero = round(-low / (high - low) * levels)

    def error(scale: float) -> float:
        rounded = (values / scale).clamp(-zero, levels - zero).round()
        return float((rounded * scale - values).square().mean())

    scales: Iterable[float] = (RATIOS * (high - low) / levels).tolist()
    return Static(torch.tensor([min(scales, key=error)], dtype=torch.float32), bits=bits, zero=zero)
