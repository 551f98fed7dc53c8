"""Coupled channels: which entries of which tensors must leave together so that the model stays whole.

Fang, Ma, Song, Mi, Wang, "DepGraph: Towards Any Structural Pruning", CVPR 2023 (2301.12900): the rows of one layer are the
columns of the next, and what is added, normalized or flattened between them ties more. Here the ties are found on the graph
of ``torch.export``. Every axis of every tensor that may shrink gets one label for each of its entries; an operation makes
labels of its inputs equal, hands them on, or, when it mixes channels or is not known, forbids to remove them. Whatever is
not understood is thus left alone. As a last check each group loses one channel for trial, and stays whole unless the model
without it computes what the model with that channel zeroed does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from kogata.network import layers, surgery
from kogata.network.batch import call, evaluating, output_error
from kogata.network.channels.tracing import Ties, trace
from kogata.network.rows import first_rows
from kogata.network.sharing import place_of


@dataclass(frozen=True, eq=False)
class Slice:
    """The entries along one axis of a tensor that belong to each channel: row c of ``index_CK`` for channel c."""

    name: str  # qualified name of a parameter or buffer
    axis: int
    makes: bool  # whether its entries make a channel each; where they neither make nor read, they scale or shift
    reads: bool  # whether its entries multiply the channels
    index_CK: Tensor  # int64


@dataclass(frozen=True, eq=False)
class Group:
    """Channels of which each can be removed, wherever it appears, and the operations that they pass through."""

    slices: tuple[Slice, ...]  # those that make the channels come first
    operations: frozenset[str]  # as ATen calls them, such as ``relu``

    @property
    def channels(self) -> int:
        """How many there are."""
        return len(self.slices[0].index_CK)

    @property
    def name(self) -> str:
        """The first weight that makes them."""
        return self.slices[0].name


@dataclass(frozen=True, eq=False)
class Coupling:
    """All groups of a model, and for each weight whose outputs must stay, the reason."""

    groups: tuple[Group, ...]
    refused: Mapping[str, str]


Cut = tuple[Group, Tensor]
"""Channels to remove from a group: int64, distinct."""


def coupled(model: nn.Module, inputs: Any) -> Coupling:
    """Every group of removable channels of ``model``, found and tried on two rows of ``inputs``, or on all if it has no rows.

    Raises NotApplicable when ``torch.export`` cannot trace the model.
    """
    sample = first_rows(model, inputs, 2)
    ties = trace(model, sample)
    groups, refused = list[Group](), dict[str, str]()
    for group in _groups(ties):
        reason = _trial(model, group, sample)
        if not reason:
            groups.append(group)
        for part in group.slices if reason else ():
            if part.makes:
                refused[part.name] = reason
    for (name, axis), labels in ties.axes.items():
        reasons = [reason for label in labels.tolist() if (reason := ties.reason(label))]
        if reasons and (name, axis) in ties.makes:
            refused.setdefault(name, reasons[0])
    return Coupling(groups=tuple(groups), refused=refused)


def _groups(ties: Ties) -> list[Group]:
    """Channels that appear along the same axes of the same tensors, as often in each, form a group."""
    places: dict[int, dict[tuple[str, int], list[int]]] = {}  # by channel
    for key, labels in ties.axes.items():
        for position, label in enumerate(labels.tolist()):
            places.setdefault(ties.find(label), {}).setdefault(key, []).append(position)
    alike: dict[tuple[tuple[tuple[str, int], int], ...], list[int]] = {}
    for channel, found in places.items():
        if not ties.reason(channel):
            alike.setdefault(tuple((key, len(found[key])) for key in found), []).append(channel)
    groups: list[Group] = []
    for kinds, channels in alike.items():
        slices = [
            Slice(*key, key in ties.makes, key in ties.reads, torch.tensor([places[channel][key] for channel in channels]))
            for key, _ in kinds
        ]
        slices.sort(key=lambda part: not part.makes)
        operations = frozenset(operation for channel in channels for operation in ties.met(channel))
        groups.append(Group(slices=tuple(slices), operations=operations))
    return groups


def _trial(model: nn.Module, group: Group, sample: Any) -> str:
    """Why no channel of the group may go; empty where the model without the first equals the model with it zeroed."""
    if group.channels < 2:
        return "it makes a single channel"
    if not any(part.reads for part in group.slices):
        return "no layer reads its channels"
    cut = [(group, torch.tensor([0]))]
    with evaluating(zero(model, cut)) as zeroed:
        wanted = call(zeroed, sample)
    try:
        with evaluating(remove(model, cut)) as smaller:
            error = float(output_error(call(smaller, sample), wanted))
    except Exception as failure:  # whatever the user's forward raises
        return f"the model fails with a channel less: {type(failure).__name__}: {failure}"
    tolerance = 16 * max(torch.finfo(t.dtype).eps for t in model.parameters() if t.is_floating_point())
    return "" if error <= tolerance else f"the model computes something else with a channel less (error {error:.1e})"


def zero(model: nn.Module, cuts: Sequence[Cut]) -> nn.Module:
    """A copy in which these channels are zero: every parameter is zero wherever it makes or reads them. Shapes stay."""
    twin = surgery.clone(model)
    for name, axes in _entries(cuts).items():
        tensor = cast("Tensor", _get(model, name))
        if isinstance(tensor, nn.Parameter):
            zeroed = tensor.detach().clone()
            for axis, entries in axes.items():
                zeroed.index_fill_(axis, entries.to(tensor.device), 0)
            _set(twin, model, name, nn.Parameter(zeroed, requires_grad=tensor.requires_grad))
    return twin


def remove(model: nn.Module, cuts: Sequence[Cut]) -> nn.Module:
    """A smaller copy without these channels: tensors are sliced and the layers' integers follow. It shares the others."""
    twin = surgery.clone(model)
    for name in _entries(cuts):
        tensor = cast("Tensor", _get(model, name))
        sliced = cut_tensor(name, tensor.detach(), cuts)
        _set(twin, model, name, nn.Parameter(sliced, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else sliced)
    for path, layer in twin.named_modules():
        before = model.get_submodule(path)
        shapes = {n: tuple(t.shape) for n, t in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))}
        layers.resize(layer, layers.shrunk(before, shapes))
    return twin


def cut_tensor(name: str, tensor: Tensor, cuts: Iterable[Cut]) -> Tensor:
    """A tensor of the shape of the parameter or buffer ``name``, without the entries that these cuts remove from that."""
    for axis, entries in _entries(cuts).get(name, {}).items():
        kept = torch.ones(tensor.shape[axis], dtype=torch.bool).index_fill(0, entries, False)
        tensor = tensor.index_select(axis, kept.nonzero().flatten().to(tensor.device))
    return tensor


def _entries(cuts: Iterable[Cut]) -> dict[str, dict[int, Tensor]]:
    """All entries that go, by tensor and axis."""
    found: dict[str, dict[int, Tensor]] = {}
    for group, channels in cuts:
        for part in group.slices:
            axes, entries = found.setdefault(part.name, {}), part.index_CK[channels].flatten()
            axes[part.axis] = torch.cat([axes[part.axis], entries]) if part.axis in axes else entries
    return found


def _get(model: nn.Module, name: str) -> object:
    path, _, key = name.rpartition(".")
    return getattr(model.get_submodule(path), key)


def _set(twin: nn.Module, model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor into the copy, under every name that the model knows the old one by."""
    place = place_of(cast("Tensor", _get(model, name)))
    tied = [other for other, parameter in model.named_parameters(remove_duplicate=False) if place_of(parameter) == place]
    for other in {name, *tied}:
        path, _, key = other.rpartition(".")
        setattr(twin.get_submodule(path), key, tensor)
