"""Lowering rules: which cheaper layers replace a layer with a form, and when they are faster.

``RULES`` has, for each form or each index map of a ``Tied`` form, one function ``rule(form, layer, costs)``. It returns a
module that computes the same as ``layer`` with the weight ``form.dense()``, or None where a dense layer is at least as fast.
The parameters of that module must not require gradients. A form without a rule becomes a dense weight.

To add a rule for a form, write the function and pass ``{**RULES, MyForm: my_rule}`` to :func:`kogata.lower` or to an engine,
``OnnxRuntime(rules=...)``; within this package, add it to ``RULES``. Compare layers by ``kind_of(layer)``, not by
``isinstance``, because subclasses may use their weight differently. To add an engine, give it its own ``Costs`` (``costs.py``).
Rules read all thresholds from ``costs`` and never check which engine it is; a new kind of threshold becomes a new field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from kogata.engines.lowering import structured_rules as structured
from kogata.engines.lowering.copies import copied
from kogata.engines.lowering.costs import Costs
from kogata.engines.lowering.layers import kind_of, stack
from kogata.engines.lowering.product_rules import product
from kogata.engines.lowering.structured_layers import Added
from kogata.forms import Displacement, Fastfood, Form, Permuted, Product, Stacked, Sum, Tied
from kogata.forms.index_map import IndexMap
from kogata.forms.structured_maps import Circulant, Diagonal

Rule = Callable[[Any, nn.Module, Costs], nn.Module | None]
Rules = Mapping[type[Form] | type[IndexMap], Rule]


def tied(form: Tied, layer: nn.Module, costs: Costs) -> nn.Module | None:
    """Replace a convolution with repeated filters by a smaller convolution and copies of its outputs.

    None for maps that crop, rotate or scatter entries: these save bytes, but every output needs its own products.
    """
    rows = form.map.rows(form.shape[0])
    return None if rows is None else copied(layer, form.base.dense(), *rows)


def permuted(form: Permuted, layer: nn.Module, costs: Costs) -> nn.Module | None:
    """Like :func:`tied`, for filters in another order."""
    if not isinstance(form.part, Tied) or (rows := form.part.map.rows(len(form.order))) is None:
        return None
    order = form.order.long().cpu()
    return copied(layer, form.part.base.dense(), *(row[order] for row in rows))


def stacked(form: Stacked, layer: nn.Module, costs: Costs) -> nn.Module | None:
    """One convolution for each part, in parallel, if together they need fewer multiply-adds than the dense layer."""
    return stack(layer, [part.dense().detach() for part in form.parts().values()], form.order(), None)


RULES: Rules = {
    Product: product, Tied: tied, Permuted: permuted, Stacked: stacked, Displacement: structured.displacement,
    Fastfood: structured.fastfood, Circulant: structured.circulant, Diagonal: structured.block_diagonal,
}  # fmt: skip


def cheaper(form: Form, layer: nn.Module, costs: Costs, rules: Rules = RULES) -> nn.Module | None:
    """The replacement of a layer by the rule of its form; None if there is no rule or it finds nothing cheaper.

    A ``Sum`` needs no rule of its own: each of its terms is replaced by the rule of that term.
    """
    if isinstance(form, Sum):
        return _added(form, layer, costs, rules)
    rule = rules.get(type(form.map)) if isinstance(form, Tied) else None
    rule = rule or rules.get(type(form))
    return None if rule is None else rule(form, layer, costs)


def _added(form: Sum, layer: nn.Module, costs: Costs, rules: Rules) -> nn.Module | None:
    """Parallel layers for the terms of a linear layer, if every term has a replacement.

    None also where all together hold more than half of the numbers of the layer.
    """
    if kind_of(layer) is not nn.Linear or not isinstance(layer, nn.Linear):
        return None
    bare = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta", dtype=layer.weight.dtype)
    first, *others = form.parts().values()
    layers = [cheaper(first, layer, costs, rules), *(cheaper(term, bare, costs, rules) for term in others)]
    made = [found for found in layers if found is not None]
    held = sum(number.numel() for found in made for number in found.parameters())
    return Added(made) if len(made) == len(layers) and 2 * held <= form.shape.numel() else None
