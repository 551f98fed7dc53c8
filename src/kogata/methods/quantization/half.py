"""Half precision: store numbers as 16-bit floats (IEEE 754 binary16)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor, nn

from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable
from kogata.forms import Dense, Form, Role
from kogata.forms.base import squared_distance
from kogata.job import Job, Row, Site
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.network import surgery
from kogata.network.sites import buffers_of


@final
@dataclass(frozen=True, kw_only=True)
class Half(WeightMethod):
    """Round weights, factors, scales and centroids to half precision. It comes last in a chain.

    Weights above 65,504, the largest half-precision number, stay as they are.

    :param buffers: also round float buffers, such as the running statistics of normalization layers. A buffer with numbers
        outside the normal range of half precision, such as a variance below 6e-5, stays as it is.

    >>> from kogata import chain
    >>> from kogata.methods import Half, KMeans
    >>> from kogata.testing.models import job_of
    >>> job = chain(KMeans(clusters=16), Half()).apply(job_of("conv"))
    >>> job.ledger[-1].bits_after < job.ledger[-1].bits_before
    True
    """

    buffers: bool = False

    ABOUT = About(
        name="half",
        family="quantization",
        summary="16-bit floats for weights, scales or centroids",
        paper="IEEE 754-2008, binary16",
        accepts=frozenset(Role),
        leaves=frozenset(Role),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """Half precision takes half the bits of float32, so it fits from a fraction of ½ on."""
        return cls() if fraction >= 1 / 2 else None

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The rounded values, as a leaf."""
        rounded = weight.half().float()
        if not torch.isfinite(rounded).all():
            raise NotApplicable("it has weights above 65,504, the largest half-precision number")
        return Dense(rounded, Role.VECTOR)

    def apply(self, job: Job) -> Job:
        """Round the selected weights and, if asked, the buffers. Raises NotApplicable when none becomes smaller."""
        if not self.buffers:
            return super().apply(job)
        idle: NotApplicable | None = None
        try:
            after = super().apply(job)  # first, because running statistics follow the rounded weights
        except NotApplicable as error:
            after, idle = job, error
        model = surgery.clone(after.model)
        rows = [_rounded(model, name, tensor) for name, tensor in _selected_buffers(after)]
        if idle is not None and all(row.note for row in rows):
            raise idle
        return replace(after, model=model, ledger=(*after.ledger, *rows))


def _selected_buffers(job: Job) -> list[tuple[str, Tensor]]:
    """The float32 and float64 buffers that the globs of all restrictions select."""
    return [
        (name, tensor) for name, tensor in buffers_of(job.model).items()
        if tensor.dtype in (torch.float32, torch.float64) and not isinstance(tensor, nn.Parameter)
        and all(where.wants(name, name.rpartition(".")[0]) for where in job.where)
    ]  # fmt: skip


def _rounded(model: nn.Module, name: str, tensor: Tensor) -> Row:
    """Round a buffer of ``model``, keeping its dtype, and return its row of the ledger."""
    before, after = 8.0 * tensor.nbytes, 16.0 * tensor.numel()
    values, limits = tensor.detach(), torch.finfo(torch.float16)
    size = values.abs()
    if not ((size == 0) | (size >= limits.smallest_normal) & (size <= limits.max)).all():
        note = "it has numbers outside the normal range of half precision"
        return Row(method=Half.ABOUT.name, site=name, bits_before=before, bits_after=before, note=note)
    rounded = values.half().to(values.dtype)
    owner, _, key = name.rpartition(".")
    setattr(model.get_submodule(owner), key, rounded)
    norm = float(values.double().square().sum())
    predicted = squared_distance(rounded, values) / norm if norm else 0.0
    return Row(method=Half.ABOUT.name, site=name, bits_before=before, bits_after=after, predicted=predicted)
