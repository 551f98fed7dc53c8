"""Turn a model whose weights are forms into plain layers for one engine."""

from __future__ import annotations

from torch import nn

from kogata.network.sites import form_of, modules_of
from kogata.network.surgery import clone, plain


def lower(model: nn.Module) -> nn.Module:
    """A plain copy in which every form that has cheaper layers is these layers, and every other form is dense."""
    twin = clone(model)
    for path, module in list(modules_of(twin)):
        parent, _, name = path.rpartition(".")
        owner = twin.get_submodule(parent)
        # The fused path of a transformer layer reads the weights of its linear layers past their forward.
        if isinstance(owner, nn.TransformerEncoderLayer):
            continue
        form = form_of(module, "weight")
        cheaper = form.lower(module) if form is not None else None
        if cheaper is None:
            continue
        if not path:
            return plain(cheaper.train(module.training))
        setattr(owner, name, cheaper.train(module.training))
    return plain(twin)
