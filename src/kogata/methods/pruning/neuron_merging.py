"""Data-free neuron merging: remove the neuron most similar to another, and add its outgoing weights to the other's.

Srinivas and Babu, "Data-free Parameter Pruning for Deep Neural Networks", BMVC 2015 (1507.06149), sections 3 and 3.1: in
    z = Σ_i a_i relu(W_i · x)
replacing neuron j by neuron i has the saliency
    s_ij = ‖W_i − W_j‖² · mean(a_j²),   after which a_i becomes a_i + a_j,
where W includes the biases and the mean is over the outputs z. The pair with the lowest saliency is merged first; then again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from kogata.job import Job, Kind
from kogata.methods.base.channel import ChannelMethod, Removal
from kogata.methods.base.guards import Sparsity
from kogata.methods.base.method import About
from kogata.network.channels.groups import Cut, Group, Slice

# Operations that may lie between the two layers besides the ReLU, because they do not change values.
_SAME_VALUES = frozenset({"clone", "contiguous", "dropout", "flatten", "permute", "reshape", "transpose", "view"})


@final
@dataclass(frozen=True, kw_only=True)
class NeuronMerging(ChannelMethod):
    """Merge neurons between two linear layers with a ReLU between them. The result is a smaller model of ordinary layers.

    ``sparsity`` is the fraction of each layer's neurons to remove, in [0, 1). It needs no data. Raises NotApplicable when no
    selected layer has this structure.

    >>> from kogata.methods import NeuronMerging
    >>> from kogata.testing.models import job_of
    >>> NeuronMerging(sparsity=0.25).apply(job_of("conv")).model.hidden
    Linear(in_features=96, out_features=24, bias=True)
    """

    sparsity: Sparsity

    ABOUT = About(
        name="neuron-merging",
        family="pruning",
        summary="remove the neuron most similar to another, add its outgoing weights to the other's",
        paper="Srinivas, Babu 2015, arXiv 1507.06149",
        layers=(Kind.LINEAR,),
    )

    def plan(self, job: Job, groups: Sequence[Group]) -> Removal:
        """The neurons to remove, and the outgoing weights of the others with those of the removed ones added."""
        cuts: list[Cut] = []
        outgoing: dict[str, tuple[Slice, Tensor]] = {}  # by the name of the group: its reader and the new outgoing weights
        kept: dict[str, str] = {}
        for group in groups:
            if (reader := _reader(job.model, group)) is None:
                kept[group.name] = "its channels are not ReLU neurons between two linear layers"
                continue
            incoming = torch.cat([_rows(job.model, part) for part in group.slices if part is not reader], 1)
            gone, columns_NO = merged(incoming, _rows(job.model, reader), round(self.sparsity * group.channels))
            cuts.append((group, gone))
            outgoing[group.name] = reader, columns_NO

        def weights(some: Sequence[Cut]) -> Mapping[str, Tensor]:
            found: dict[str, Tensor] = {}
            for group, _ in some:
                reader, columns_NO = outgoing[group.name]
                weight_OI = found.get(reader.name, job.model.get_parameter(reader.name).detach().double().cpu())
                found[reader.name] = weight_OI.index_copy(1, reader.index_CK[:, 0], columns_NO.T)
            return found

        return Removal(cuts, weights, kept)


def _reader(model: nn.Module, group: Group) -> Slice | None:
    """The weight that reads the neurons of a group; None unless they are ReLU neurons between exactly two linear layers."""
    owners = {part.name.rpartition(".")[0] for part in group.slices if not part.reads}
    readers = [part for part in group.slices if part.reads]
    linear = all(isinstance(model.get_submodule(part.name.rpartition(".")[0]), nn.Linear) for part in group.slices)
    single = len(owners) == len(readers) == 1 and readers[0].index_CK.shape[1] == 1 and not readers[0].makes
    return readers[0] if linear and single and group.operations - _SAME_VALUES == frozenset({"relu"}) else None


def _rows(model: nn.Module, part: Slice) -> Tensor:
    """The entries of a tensor that belong to each neuron, ``[neurons, entries]``, float64."""
    tensor = model.get_parameter(part.name).detach().double().cpu()
    return tensor.movedim(part.axis, 0)[part.index_CK[:, 0]].reshape(len(part.index_CK), -1)


def merged(incoming_NI: Tensor, outgoing_NO: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Merge ``count`` of N neurons; return the removed ones, in ascending order, and the new outgoing weights of all.

    The nearest neighbour of each neuron is kept up to date, so that a merge costs O(N) instead of O(N²).
    """
    outgoing_NO = outgoing_NO.clone()
    distance_NN = torch.cdist(incoming_NI, incoming_NI, compute_mode="donot_use_mm_for_euclid_dist").square()
    distance_NN.fill_diagonal_(float("inf"))  # no neuron is merged into itself
    distance_N, nearest_N = distance_NN.min(dim=0)
    strength_N = outgoing_NO.square().mean(1)
    gone = torch.zeros(len(incoming_NI), dtype=torch.bool)
    for _ in range(min(count, len(gone) - 1)):
        j = int((distance_N * strength_N).masked_fill(gone, float("inf")).argmin())
        i = int(nearest_N[j])
        outgoing_NO[i] += outgoing_NO[j]
        strength_N[i] = outgoing_NO[i].square().mean()
        gone[j] = True
        distance_NN[j] = float("inf")
        orphans = (nearest_N == j).logical_and(~gone).nonzero().flatten()
        distance_N[orphans], nearest_N[orphans] = distance_NN[:, orphans].min(dim=0)
    return gone.nonzero().flatten(), outgoing_NO
