"""Binary inputs of layers: sign functions replace the activation modules before them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

from torch import fx, nn

from kogata.job import Site
from kogata.methods.base.trained import TrainedLeaf
from kogata.network import surgery
from kogata.network.quantizers import Sign, attach_quantizer

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardtanh, nn.Tanh, nn.Hardswish)
# What may lie between an activation and the layer that reads it: the layer still reads signs.
_PASSED = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d)
_PASSED_CALLS = frozenset({"contiguous", "dropout", "flatten", "reshape", "view"})
_POOLED = re.compile(r"(max|avg)_?pool|boolean_dispatch", re.IGNORECASE)  # PyTorch calls its max pooling boolean_dispatch


def binarize(model: nn.Module, targets: Sequence[TrainedLeaf]) -> None:
    """Replace the activations that the targets' layers read by sign functions, in place.

    An activation module that is called in several places is replaced in all of them.
    """
    reads = _reads(model)
    for site in dict.fromkeys(target.site for target in targets):
        activation = _activation(model, reads, site)
        assert isinstance(activation, nn.Module), f"{site.name} is unfit"
        attach_quantizer(activation, Sign())


def unreadable(model: nn.Module, sites: Sequence[Site]) -> dict[Site, str]:
    """The sites whose layers do not read the output of an activation module, each with the reason."""
    try:
        reads = _reads(model)
    except Exception as error:  # tracing may raise anything in the user's forward
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return dict.fromkeys(sites, f"the activations of {type(model).__name__} cannot be traced: {reason}")
    found = {site: _activation(model, reads, site) for site in sites}
    return {site: reason for site, reason in found.items() if isinstance(reason, str)}


def _activation(model: nn.Module, reads: dict[nn.Module, fx.Node], site: Site) -> nn.Module | str:
    """The activation module whose output a site's layer reads, or the reason why there is none."""
    module = model.get_submodule(site.module)
    if module not in reads:
        return "it is never called as a layer, so its inputs cannot become signs"
    node = reads[module]
    while _passes(model, node):
        node = cast("fx.Node", node.args[0])
    activation = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(activation, _ACTIVATIONS):
        return activation
    if _POOLED.search(_name(node) if node.op != "call_module" else type(model.get_submodule(str(node.target))).__name__):
        return (
            f"it reads {_called(node)}, a pooling, which makes nearly all of the signs before it +1, or no signs of them; "
            "pool before the normalization and the activation, as the papers do"
        )
    return f"it reads {_called(node)}; a sign can only replace an activation module before the layer, such as nn.ReLU"


def _reads(model: nn.Module) -> dict[nn.Module, fx.Node]:
    """For each leaf module, the node of the traced graph that it reads at its first call."""
    graph = fx.Tracer().trace(surgery.clone(model))
    calls = [node for node in reversed(graph.nodes) if node.op == "call_module" and node.all_input_nodes]
    return {model.get_submodule(str(node.target)): node.all_input_nodes[0] for node in calls}


def _passes(model: nn.Module, node: fx.Node) -> bool:
    """Whether a node passes its input on unchanged, apart from its shape."""
    if not (node.args and isinstance(node.args[0], fx.Node)):
        return False
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), _PASSED)
    return node.op in ("call_method", "call_function") and _name(node) in _PASSED_CALLS


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else node.target.__name__


def _called(node: fx.Node) -> str:
    if node.op == "placeholder":
        return "the model's own input"
    return f"the module {node.target}" if node.op == "call_module" else f"the result of {_name(node)}()"
