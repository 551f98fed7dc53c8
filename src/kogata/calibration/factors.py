"""Factors that a forward puts on the entries of a weight before it multiplies it, as part of the inputs.

In ``x @ (w * g).T`` the weight really multiplies ``x * g`` where ``g`` has one factor for each input. Factors for each
output, as in weight standardization, weigh whole rows and change no row's inputs. A mask of single entries gives every row
inputs of its own, which no one Gram matrix describes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from kogata.calibration.origins import LINEAR, Origin, name_of
from kogata.network.operations import Use

CLOSE = 1e-5  # relative: two factors that differ by rounding


def factors(origin: Origin, weight: Callable[[str], Tensor]) -> Tensor | None:
    """How much each entry of a tensor changes with the entry of the weight that it is, of the tensor's shape; None: all 1.

    Statistics of the weight itself (a mean, a norm) count as constants, as do other weights; functions that are not linear, and
    that treat all entries alike, as the identity.
    """
    shadow = origin.shadow
    if not origin.scaled or shadow is None:
        return None

    def run(scale: float) -> Tensor:
        def value(part: Origin) -> Tensor:
            if part.name != origin.name or part.shadow is None:
                return part.value(weight)
            found = factors(part, weight)
            if found is None:
                found = torch.ones(part.shadow.shape, device=weight(part.name).device)
            return found * scale  # a new tensor: the function may write into it

        return origin.again(value)

    if origin.viewed:
        return run(1)
    if name_of(origin.func) in LINEAR:
        return run(1) - run(0)
    own = [part for part in origin.operands() if part.name == origin.name and part.shadow is not None]
    return factors(next(part for part in own if part.shadow is not None and part.shadow.shape == shadow.shape), weight)


def weighed(use: Use, factor: Tensor) -> Use | None:
    """The use with the factors as part of its inputs.

    None where they are not one for each input, times one for each output.
    """
    full = factor.detach().reshape(use.view or factor.shape).double()
    batch, outputs, inputs = ([n for n, role in enumerate(use.roles) if role == letter] for letter in "boi")
    sizes = [full.shape[n] for n in batch], [full.shape[n] for n in inputs]
    f_BOI = full.permute(*batch, *outputs, *inputs).reshape(math.prod(sizes[0]), -1, math.prod(sizes[1]))
    if not torch.isfinite(f_BOI).all():
        return None
    norm_BO = torch.linalg.vector_norm(f_BOI, dim=2)
    largest_B1 = norm_BO.argmax(1, keepdim=True)
    g_BI = f_BOI.take_along_dim(largest_B1[..., None], 1)[:, 0]
    share_BO = (f_BOI @ g_BI[..., None])[..., 0] / g_BI.square().sum(1, keepdim=True).clamp_min(torch.finfo(torch.double).tiny)
    rest_BO = torch.linalg.vector_norm(f_BOI - share_BO[..., None] * g_BI[:, None], dim=2)
    if (rest_BO > CLOSE * norm_BO).any():
        return None
    alike_B1 = ((share_BO.abs() - 1).abs() <= CLOSE).all(1, keepdim=True)
    mean_B1 = g_BI.square().mean(1, keepdim=True).sqrt()  # where outputs have factors too, only those between inputs count
    g_BI = torch.where(alike_B1 | (mean_B1 == 0), g_BI, g_BI / mean_B1)
    if ((g_BI.abs() - 1).abs() <= CLOSE).all() and (g_BI.sign() == g_BI[:, :1].sign()).all():
        return use
    return replace(use, rows=partial(_scaled, use.rows, g_BI.float().reshape(*sizes[0], 1, *sizes[1])))


def _scaled(rows: Callable[[], Iterator[Tensor]], factor: Tensor) -> Iterator[Tensor]:
    for piece in rows():
        yield piece * factor
