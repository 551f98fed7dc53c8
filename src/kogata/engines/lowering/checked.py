"""Checked lowering: cheaper layers are used only where the outputs of the model stay the same."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from kogata.engines.lowering.costs import Costs
from kogata.engines.lowering.lower import cheaper_layers, with_layers
from kogata.engines.lowering.rules import RULES, Rules
from kogata.network import surgery
from kogata.network.batch import call, evaluating, output_error
from kogata.network.rows import first_rows

log = logging.getLogger("kogata")
TOLERANCE = 1e-5  # largest relative squared error of the outputs; that of rounding is far smaller


def lowered(model: nn.Module, inputs: Any, costs: Costs, rules: Rules = RULES) -> nn.Module:
    """``lower(model, costs, rules)`` in evaluation mode, except that layers stay dense where the model's code requires it.

    For example, code that reads ``self.layer.weight`` directly fails with other layers in its place. The outputs for the first
    sample of ``inputs``, a batch, are compared with those of the dense model. If they differ, each layer is tried alone, and
    those that fail stay dense. If no single layer is the cause, all layers stay dense. A warning in the log names them and the
    reason.
    """
    layers, dense = cheaper_layers(model, costs, rules), surgery.densify(surgery.clone(model)).eval()
    if not layers:
        return dense
    sample = first_rows(dense, inputs)
    with evaluating(dense):
        wanted = call(dense, sample)

        def failure(candidate: nn.Module) -> str:
            try:
                error = float(output_error(call(candidate, sample), wanted))
            except Exception as raised:  # the user's forward may raise anything
                return f"{type(raised).__name__}: {raised}"
            return "" if error <= TOLERANCE else f"its outputs differ by {error:.1e}"

        whole = with_layers(model, layers).eval()
        if not (reason := failure(whole)):
            return whole
        alone = {path: failure(with_layers(model, {path: layer}).eval()) for path, layer in layers.items()}
        good = with_layers(model, {path: layer for path, layer in layers.items() if not alone[path]}).eval()
        failed = {path: why for path, why in alone.items() if why}
        if failed and not failure(good):
            for path, why in failed.items():
                log.warning("lower: %s stays dense, because the model fails with cheaper layers in its place: %s", path, why)
            return good
    log.warning(
        "lower: %s keeps all its dense layers (%s could be cheaper), because it fails with cheaper ones: %s",
        type(model).__name__, ", ".join(path or "itself" for path in layers), reason,
    )  # fmt: skip
    return dense
