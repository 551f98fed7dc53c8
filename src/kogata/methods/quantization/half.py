"""Half precision: store numbers as 16-bit floats (IEEE 754 binary16)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor, nn

from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable
from kogata.forms import Dense, Form, Role
from kogata.forms.base import squared_distance
from kogata.job import Job, Kind, Row, Site
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.network import surgery
from kogata.network.sharing import place_of
from kogata.network.sites import buffers_of

RUNNING = ("running_mean", "running_var")  # PyTorch's names, which the frozen normalization layers of other libraries share

ALREADY = "half precision holds its numbers exactly, and the file stores them so"


@final
@dataclass(frozen=True, kw_only=True)
class Half(WeightMethod):
    """Round weights, factors, scales and centroids to half precision. It comes last in a chain.

    Weights above 65,504, the largest half-precision number, stay as they are. Restricted to vectors, it rounds biases,
    normalization vectors, and also the running statistics of normalization layers. A buffer of such a layer stays as it is if
    one of its numbers would become infinite, or 0 without being 0, such as a variance below 2.9e-8. All other float buffers
    stay: nothing tells how exact they must be.

    >>> from kogata import Where, chain, only
    >>> from kogata.methods import Half, KMeans
    >>> from kogata.testing.models import job_of
    >>> job = chain(KMeans(clusters=16), Half(), only(Half(), Where(vectors=True))).apply(job_of("conv"))
    >>> all(row.bits_after < row.bits_before for row in job.ledger if not row.note)
    True
    """

    ABOUT = About(
        name="half",
        family="quantization",
        summary="16-bit floats for weights, scales, centroids or normalization",
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
        if torch.equal(rounded, weight.float()):
            raise NotApplicable(ALREADY)
        if not torch.isfinite(rounded).all():
            raise NotApplicable("it has weights above 65,504, the largest half-precision number")
        return Dense(rounded, Role.VECTOR)

    def apply(self, job: Job) -> Job:
        """Round the selected weights, and buffers where vectors are selected. Raises NotApplicable when none gets smaller."""
        idle: NotApplicable | None = None
        try:
            after = super().apply(job)  # first, because running statistics follow the rounded weights
        except NotApplicable as error:
            after, idle = job, error
        model = surgery.clone(after.model)
        made: dict[Hashable, Tensor] = {}  # by place, so that modules that share a buffer go on sharing it
        rows = [_round_buffer(model, name, tensor, made) for name, tensor in _selected_buffers(after)]
        if idle is not None and all(row.note for row in rows):
            raise idle
        return replace(after, model=model, ledger=(*after.ledger, *rows))


def _selected_buffers(job: Job) -> Iterator[tuple[str, Tensor]]:
    """The float32 and float64 buffers that the restrictions of the job select, if they select vectors."""
    if not job.where:
        return
    for name, tensor in buffers_of(job.model).items():
        floats = tensor.dtype in (torch.float32, torch.float64) and not isinstance(tensor, nn.Parameter)
        module = name.rpartition(".")[0]
        if floats and all(w.vectors and Kind.OTHER in w.kinds and w.wants(name, module) for w in job.where):
            yield name, tensor


def _round_buffer(model: nn.Module, name: str, tensor: Tensor, made: dict[Hashable, Tensor]) -> Row:
    """Round a buffer of ``model``, keeping its dtype, unless there is a reason against it; return its row of the ledger.

    ``made`` has the rounded buffers so far, by the place of what they were made of.
    """
    before = 8.0 * tensor.nbytes
    path, _, key = name.rpartition(".")
    owner, values = model.get_submodule(path), tensor.detach()
    if note := _reason_against(owner, values):
        return Row(method=Half.ABOUT.name, site=name, bits_before=before, bits_after=before, note=note)
    rounded = made.setdefault(place_of(values), values.half().to(values.dtype))
    setattr(owner, key, rounded)
    norm = float(values.double().square().sum())
    predicted = squared_distance(rounded, values) / norm if norm else 0.0
    return Row(
        method=Half.ABOUT.name, site=name, bits_before=before, bits_after=16.0 * values.numel(), predicted=predicted
    )  # fmt: skip


def _reason_against(owner: nn.Module, values: Tensor) -> str:
    """Why a buffer of the layer ``owner`` stays as it is; empty when it is to be rounded."""
    if any(dict(owner.named_buffers(recurse=False)).get(name) is None for name in RUNNING):
        return "it is no buffer of a layer with running statistics"
    rounded = values.half().to(values.dtype)
    if torch.equal(rounded, values):
        return ALREADY
    if not torch.isfinite(rounded).all():
        return "it holds numbers above 65,504, the largest half-precision number, or no numbers at all (NaN)"
    if ((rounded == 0) & (values != 0)).any():
        return "it holds numbers too small for half precision, which would become 0"
    return ""
