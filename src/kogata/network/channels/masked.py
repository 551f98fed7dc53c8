"""Weights of which whole rows and columns are pruned: channels are removed without the masks, which then cover what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from kogata.forms import Dense, Masked, Role
from kogata.network import surgery
from kogata.network.channels.groups import Cut, Group, cut_tensor
from kogata.network.sites import form_at, sites_of


def unmasked(model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy in which such weights are plain, with zeros, and their masks by name; the model itself where there are none."""
    found = {
        site: form for site in sites_of(model)
        if isinstance(form := form_at(model, site), Masked) and isinstance(form.values, Dense) and _whole(form.mask)
    }  # fmt: skip
    if not found:
        return model, {}
    twin = surgery.clone(model)
    for site, form in found.items():
        weight = nn.Parameter(form.dense().detach(), requires_grad=surgery.trainable(form))
        surgery.attach(twin, site, Dense(weight, Role.MATRIX))
    return twin, {site.name: form.mask for site, form in found.items()}


def mask_again(model: nn.Module, masks: Mapping[str, Tensor], cuts: Sequence[Cut]) -> None:
    """Put the masks back, in place, on the weights that still have pruned entries after these cuts."""
    sites = {site.name: site for site in sites_of(model)}
    for name, mask in masks.items():
        left = cut_tensor(name, mask, cuts)
        if not left.all():
            surgery.attach(model, sites[name], Masked.of(model.get_parameter(name).detach(), left))


def dead(model: nn.Module, group: Group) -> Tensor:
    """Which channels of a group carry nothing: all weights that make them are zero, or all that read them; bool."""
    found = torch.zeros(group.channels, dtype=torch.bool)
    for wanted in ("makes", "reads"):
        parts = [part for part in group.slices if getattr(part, wanted)]
        idle = torch.ones(group.channels, dtype=torch.bool)
        for part in parts:
            weight = cast("Tensor", model.get_parameter(part.name)).detach().cpu()
            idle &= ~(weight.movedim(part.axis, 0)[part.index_CK].flatten(1) != 0).any(1)
        found |= idle if parts else False
    return found


def _whole(mask: Tensor) -> bool:
    """Whether a mask of a matrix prunes nothing but whole rows and whole columns."""
    if mask.ndim < 2:
        return False
    flat = mask.flatten(2) if mask.ndim > 2 else mask[:, :, None]
    rows, columns = flat.any(2).any(1), flat.any(2).any(0)
    return bool((flat == (rows[:, None] & columns)[:, :, None]).all())
