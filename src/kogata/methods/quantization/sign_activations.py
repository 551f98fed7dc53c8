"""Binary inputs for layers: signs in the place of the ReLUs before them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import fx, nn

from kogata.job import Site
from kogata.methods.base.trained import TrainedLeaf
from kogata.network import surgery
from kogata.network.quantizers import Sign, attach_quantizer

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardtanh, nn.Tanh, nn.Hardswish)
# What may lie between an activation and the layer that reads it: signs go through unchanged, but for means of them.
_PASSED = (
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d,
)  # fmt: skip
_PASSED_CALLS = frozenset({
    "adaptive_avg_pool2d", "avg_pool2d", "boolean_dispatch", "contiguous", "dropout", "flatten", "max_pool2d", "reshape",
    "view",
})  # fmt: skip


def binarize(model: nn.Module, targets: Sequence[TrainedLeaf]) -> None:
    """Let signs stand in for the activations that the targets' layers read, in ``model`` itself.

    An activation module that is called in several places becomes a sign in all of them.
    """
    reads = _reads(model)
    for site in dict.fromkeys(target.site for target in targets):
        activation = _activation(model, reads, site)
        assert isinstance(activation, nn.Module), f"{site.name} is unfit"
        attach_quantizer(activation, Sign())


def unreadable(model: nn.Module, sites: Sequence[Site]) -> dict[Site, str]:
    """The sites whose layers read anything but an activation module, such as images or a sum, and what that is."""
    try:
        reads = _reads(model)
    except Exception as error:  # whatever the user's forward raises when it meets a symbol
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return dict.fromkeys(sites, f"the activations of {type(model).__name__} cannot be followed: {reason}")
    found = {site: _activation(model, reads, site) for site in sites}
    return {site: reason for site, reason in found.items() if isinstance(reason, str)}


def _activation(model: nn.Module, reads: dict[nn.Module, fx.Node], site: Site) -> nn.Module | str:
    """The activation module that a site's layer reads, or why there is none."""
    module = model.get_submodule(site.module)
    if module not in reads:
        return "it is never called as a layer, so its inputs cannot become signs"
    node = reads[module]
    while _passes(model, node):
        node = cast("fx.Node", node.args[0])
    activation = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(activation, _ACTIVATIONS):
        return activation
    return f"it reads {_called(node)}, and a sign can only stand in for an activation module, such as nn.ReLU, before the layer"


def _reads(model: nn.Module) -> dict[nn.Module, fx.Node]:
    """What each module of PyTorch's own reads at its first call."""
    graph = fx.Tracer().trace(surgery.clone(model))
    calls = [node for node in reversed(graph.nodes) if node.op == "call_module" and node.all_input_nodes]
    return {model.get_submodule(str(node.target)): node.all_input_nodes[0] for node in calls}


def _passes(model: nn.Module, node: fx.Node) -> bool:
    """Whether what comes in is, but for its shape or a pooling, what goes out."""
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
