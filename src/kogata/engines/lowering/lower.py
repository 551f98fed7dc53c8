"""Turn a model whose weights are forms into plain layers for one engine."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from kogata.engines.lowering.costs import EAGER, Costs
from kogata.engines.lowering.rules import RULES, Rules, cheaper
from kogata.network.quantizers import quantizer_of
from kogata.network.sites import form_of, modules_of
from kogata.network.surgery import clone, plain


def lower(model: nn.Module, costs: Costs = EAGER, rules: Rules = RULES) -> nn.Module:
    """A plain copy in which every form that has cheaper layers is these layers, and every other form is dense.

    ``costs`` are those of the engine that is to run it: ``EAGER`` for PyTorch, ``ONNXRUNTIME`` for a model that is exported
    to ONNX next. ``rules`` say which layers a form has; ``{**RULES, MyForm: my_rule}`` adds one (see ``rules.py``).

    >>> import torch
    >>> from kogata.forms import Product
    >>> from kogata.network.sites import sites_of
    >>> from kogata.network.surgery import attach
    >>> model = nn.Sequential(nn.Linear(64, 32))
    >>> bias, weight = sites_of(model)
    >>> attach(model, weight, Product.of("or,ri->oi", [torch.randn(32, 4), torch.randn(4, 64)], (32, 64)))
    >>> lower(model)
    Sequential(
      (0): Sequential(
        (0): Linear(in_features=64, out_features=4, bias=False)
        (1): Linear(in_features=4, out_features=32, bias=True)
      )
    )
    """
    return with_layers(model, cheaper_layers(model, costs, rules))


def cheaper_layers(model: nn.Module, costs: Costs, rules: Rules) -> dict[str, nn.Module]:
    """What replaces the module at each path, for every module that has something cheaper.

    A quantizer that sits on a module rounds the inputs of what replaces it. Other hooks of the module are not taken over.
    """
    found: dict[str, nn.Module] = {}
    for path, module in modules_of(model):
        parent = path.rpartition(".")[0]
        # The fused path of a transformer layer reads the weights of its linear layers past their forward.
        if path and isinstance(model.get_submodule(parent), nn.TransformerEncoderLayer):
            continue
        form = form_of(module, "weight")
        layer = None if form is None else cheaper(form, module, costs, rules)
        if layer is None:
            continue
        quantizer = quantizer_of(module)
        found[path] = (layer if quantizer is None else nn.Sequential(quantizer, layer)).train(module.training)
    return found


def with_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """A plain copy with these layers at their paths; every form that is left is computed into a dense weight."""
    if "" in layers:
        return plain(layers[""])
    twin = clone(model)
    for path, layer in layers.items():
        parent, _, name = path.rpartition(".")
        setattr(twin.get_submodule(parent), name, layer)
    return plain(twin)
