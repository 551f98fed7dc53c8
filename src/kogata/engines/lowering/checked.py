"""Lowering that is checked: cheaper layers only where they compute the same."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from kogata.engines.lowering.lower import lower
from kogata.network import surgery
from kogata.network.batch import call, evaluating, output_error, take

log = logging.getLogger("kogata")
TOLERANCE = 1e-5  # relative squared error of the outputs; rounding alone stays far below


def lowered(model: nn.Module, inputs: Any) -> nn.Module:
    """``lower(model)``, or the plain dense model when a forward of the user's own cannot do with cheaper layers.

    A module that reads ``self.layer.weight`` past the layer's forward is such a one. The fallback is logged as a warning.
    """
    cheaper, dense, sample = lower(model).eval(), surgery.plain(model).eval(), take(inputs, 1)
    with evaluating(dense):
        wanted = call(dense, sample)
        try:
            error = float(output_error(call(cheaper, sample), wanted))
            reason = "" if error <= TOLERANCE else f"its outputs differ by {error:.1e}"
        except Exception as failure:  # whatever the user's forward raises
            reason = f"{type(failure).__name__}: {failure}"
    if not reason:
        return cheaper
    log.warning("lower: %s keeps its dense layers, because with cheaper ones it fails: %s", type(model).__name__, reason)
    return dense
