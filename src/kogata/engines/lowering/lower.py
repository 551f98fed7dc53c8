"""Replace layers with forms by ordinary layers that are cheaper in a given engine."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from kogata.engines.lowering.costs import EAGER, Costs
from kogata.engines.lowering.rules import RULES, Rules, cheaper
from kogata.network.quantizers import quantizer_of
from kogata.network.sites import form_of, modules_of
from kogata.network.surgery import clone, densify


def lower(model: nn.Module, costs: Costs = EAGER, rules: Rules = RULES) -> nn.Module:
    """A copy of the model without forms: layers are replaced by cheaper ones where a rule finds some, others become dense.

    ``costs`` are those of the engine that will run the model: ``EAGER`` for PyTorch, ``ONNXRUNTIME`` if the model is exported
    to ONNX next. ``rules`` say which layers replace a form; ``{**RULES, MyForm: my_rule}`` adds a rule (see ``rules.py``). The
    copy shares no tensor with ``model``; train, move and cast it freely.

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
    own = clone(model, share=False)
    return with_layers(own, cheaper_layers(own, costs, rules))


def cheaper_layers(model: nn.Module, costs: Costs, rules: Rules) -> dict[str, nn.Module]:
    """The replacements of all modules for which a rule finds cheaper layers, by path.

    An activation quantizer of a module is kept and rounds the inputs of its replacement. Other hooks of the module are lost.
    """
    found: dict[str, nn.Module] = {}
    for path, module in modules_of(model):
        parent = path.rpartition(".")[0]
        # The fused path of a transformer layer reads the weights of its linear layers directly, without calling the layers.
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
    """A copy of the model with these layers at their paths. All remaining forms become dense weights.

    The copy shares all other tensors with the model.
    """
    if "" in layers:
        return densify(clone(layers[""]))
    twin = clone(model)
    for path, layer in layers.items():
        parent, _, name = path.rpartition(".")
        setattr(twin.get_submodule(parent), name, layer)
    return densify(twin)
