"""Layers for training nets with transferred filters from scratch, and how equivariant a layer is.

A transferred filter is a transform of another one. Here such a layer is a plain ``nn.Conv2d`` whose weight is a ``Tied`` form,
so it trains, is stored at the size of its base, and may be pruned, shared and quantized like any other. Its channels come in
groups: all transforms of the first base filter, then those of the second.

>>> from torch import nn
>>> net = nn.Sequential(
...     group_convolution(3, 8, 3, stacked=False, padding=1), GroupBatchNorm2d(8, 4), nn.ReLU(),
...     group_convolution(8, 16, 3, stacked=True, padding=1), GroupBatchNorm2d(16, 4), nn.ReLU(), GroupPool(4),
... )
>>> tuple(net(torch.randn(2, 3, 8, 8)).shape)
(2, 16, 8, 8)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kogata.errors import DataError, UsageError
from kogata.forms import Dense, Role
from kogata.forms.filter_maps import Crops, Opposite, Orbit, Repeat, crops, moved
from kogata.forms.index_map import IndexMap
from kogata.forms.tied import Tied
from kogata.network import surgery
from kogata.network.batch import evaluating
from kogata.network.sites import sites_of


def group_convolution(
    inputs: int, outputs: int, kernel: int, *, stacked: bool, mirrored: bool = False, stride: int = 1, padding: int = 0
) -> nn.Conv2d:
    """``outputs`` filters in all 4, or ``mirrored`` 8, positions (Cohen and Welling 2016, 1602.07576), without a bias.

    Images ``[N, inputs, H, W]``, or with ``stacked`` maps ``[N, inputs · 4, H, W]`` of a layer such as this one, to
    ``[N, outputs · 4, H, W]`` (8 for 4 where mirrored). Turning the image turns the maps and permutes each group of them, for
    strides that tile the image alike from all sides. A :class:`GroupBatchNorm2d` in place of a bias keeps that so.
    """
    _check({"inputs": inputs, "outputs": outputs, "kernel": kernel})
    map = Orbit(mirrored, stacked)
    layer = nn.Conv2d(inputs * map.order if stacked else inputs, outputs * map.order, kernel, stride, padding, bias=False)
    return _tied(layer, map, (outputs, layer.in_channels, kernel, kernel))


def opposite_convolution(inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    """``outputs`` filters and their negatives: with ReLU after it, CReLU (Shang et al. 2016, 1603.05201); no bias.

    ``[N, inputs, H, W]`` to ``[N, outputs · 2, H, W]``.
    """
    _check({"inputs": inputs, "outputs": outputs, "kernel": kernel})
    layer = nn.Conv2d(inputs, outputs * 2, kernel, stride, padding, bias=False)
    return _tied(layer, Opposite(), (outputs, inputs, kernel, kernel))


def multi_bias_convolution(
    inputs: int, outputs: int, kernel: int, *, biases: int = 2, stride: int = 1, padding: int = 0
) -> nn.Conv2d:
    """``outputs`` filters, each with so many biases (Li et al. 2016, 1604.00676).

    ``[N, inputs, H, W]`` to ``[N, outputs · biases, H, W]``. The biases start spread over one standard deviation of maps of
    variance 1, since equal ones would stay equal.
    """
    _check({"inputs": inputs, "outputs": outputs, "kernel": kernel, "biases": biases})
    layer = nn.Conv2d(inputs, outputs * biases, kernel, stride, padding)
    with torch.no_grad():
        _of_bias(layer).copy_(_levels(outputs, biases))
    return _tied(layer, Repeat(biases), (outputs, inputs, kernel, kernel))


def doubly_convolution(
    inputs: int, outputs: int, kernel: int, *, margin: int = 1, stride: int = 1, padding: int = 0
) -> nn.Conv2d:
    """All crops of ``outputs`` filters that are larger by ``margin`` (Zhai et al. 2016, 1610.09716); no bias.

    ``[N, inputs, H, W]`` to ``[N, outputs · (margin + 1)², H, W]``.
    """
    _check({"inputs": inputs, "outputs": outputs, "kernel": kernel, "margin": margin})
    extent = kernel + margin
    layer = nn.Conv2d(inputs, outputs * len(crops(kernel, extent)), kernel, stride, padding, bias=False)
    return _tied(layer, Crops(extent), (outputs, inputs, extent, extent))


def _check(counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UsageError(f"filters: {name} is {count}; expected a whole number from 1.")


def _tied(layer: nn.Conv2d, map: IndexMap, base: tuple[int, ...]) -> nn.Conv2d:
    """The layer with filters that are transforms of a new base, of the range that ``nn.Conv2d`` draws from."""
    bound = 1 / math.sqrt(math.prod(layer.weight.shape[1:]))
    form = Tied(map, Dense(torch.empty(base).uniform_(-bound, bound), Role.MATRIX), layer.weight.shape)
    site = next(site for site in sites_of(layer) if site.parameter == "weight")
    surgery.attach(layer, site, form)
    return layer


def _of_bias(layer: nn.Conv2d) -> Tensor:
    if layer.bias is None:
        raise TypeError("a convolution with biases lost its bias")
    return layer.bias


def _levels(channels: int, biases: int) -> Tensor:
    """Biases ``[channels · biases]``, those of each channel evenly from −½ to ½."""
    return torch.linspace(-0.5, 0.5, biases).repeat(channels)


class CReLU(nn.Module):
    """``ReLU([x, −x])``: maps ``[N, C, ...]`` to ``[N, 2C, ...]``."""

    def forward(self, maps: Tensor) -> Tensor:
        """See the class."""
        return torch.cat([maps, -maps], 1).relu()


class MultiBias(nn.Module):
    """Each map with several learnt biases: ``[N, C, ...]`` to ``[N, C · biases, ...]``, to be followed by an activation."""

    bias: nn.Parameter

    def __init__(self, channels: int, biases: int = 2) -> None:
        super().__init__()
        _check({"channels": channels, "biases": biases})
        self.biases = biases
        self.bias = nn.Parameter(_levels(channels, biases))

    def forward(self, maps: Tensor) -> Tensor:
        """See the class."""
        return maps.repeat_interleave(self.biases, 1) + self.bias.view(-1, *(1 for _ in maps.shape[2:]))


class GroupBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization of ``[N, channels · order, H, W]``: the maps of a group share statistics, scale and shift."""

    def __init__(self, channels: int, order: int) -> None:
        _check({"channels": channels, "order": order})
        super().__init__(channels)
        self.order = order

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        height = input.shape[2]
        tall_NCHW = input.unflatten(1, (-1, self.order)).flatten(2, 3)  # a group is one map, its members below each other
        return super().forward(tall_NCHW).unflatten(2, (self.order, height)).flatten(1, 2)


class GroupPool(nn.Module):
    """The largest of each group of ``order`` consecutive channels: ``[N, C · order, ...]`` to ``[N, C, ...]``."""

    def __init__(self, order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, maps: Tensor) -> Tensor:
        """See the class."""
        return maps.unflatten(1, (-1, self.order)).amax(2)


class CyclicSlice(nn.Module):
    """Images ``[N, C, H, W]`` in four orientations: ``[4N, C, H, W]``, all as they are first, then all turned once, ..."""

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return torch.cat([moved(images, turns) for turns in range(4)])


class CyclicRoll(nn.Module):
    """Gives each orientation the maps of all, turned to lie over its own: ``[4N, C, H, W]`` to ``[4N, 4C, H, W]``."""

    def forward(self, maps: Tensor) -> Tensor:
        """See the class."""
        parts = maps.chunk(4)
        rolled = [torch.cat([moved(parts[(own + t) % 4], -t % 4) for t in range(4)], 1) for own in range(4)]
        return torch.cat(rolled)


class CyclicPool(nn.Module):
    """The mean over the four orientations, maps turned back first: ``[4N, C, H, W]`` to ``[N, C, H, W]``; or of ``[4N, C]``."""

    def forward(self, maps: Tensor) -> Tensor:
        """See the class."""
        parts = maps.chunk(4)
        back = parts if maps.ndim == 2 else [moved(part, -turns % 4) for turns, part in enumerate(parts)]
        return torch.stack(list(back)).mean(0)


def equivariance(model: nn.Module, images: Tensor, *, turns: int = 1, mirrored: bool = False) -> dict[str, float]:
    """How far each convolution's maps Φ are from equivariant: ‖T′Φ(x) − Φ(Tx)‖ / ‖Φ(Tx)‖; 0 is perfect, √2 is unrelated.

    T mirrors the ``images`` ``[N, C, H, W]`` if asked, and turns them by quarters; T′ does so to the maps and permutes them.
    The permutation is matched to the data, nearest maps first. Keys are the paths of the ``nn.Conv2d`` in ``model``, which is
    run twice, in evaluation mode. Raises DataError for images that are not square, or a layer that sees others.
    """
    element = turns % 4 + 4 * mirrored
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise DataError(f"equivariance: images of shape {tuple(images.shape)}; expected square ones [N, C, H, W].")
    plain, turned = _maps(model, images), _maps(model, moved(images, element))
    return {name: _mismatch(moved(plain[name], element), maps, name) for name, maps in turned.items()}


def _maps(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The outputs of every convolution; of its last call where there are several."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            found[name] = output

        return hook

    handles = [m.register_forward_hook(keep(name)) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    try:
        with evaluating(model):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _mismatch(wanted_NCHW: Tensor, found_NCHW: Tensor, name: str) -> float:
    """‖wanted, its channels permuted, − found‖ / ‖found‖; 0 where nothing is found."""
    if wanted_NCHW.shape != found_NCHW.shape:
        raise DataError(f"equivariance: {name} sees maps that are not square, {tuple(found_NCHW.shape)}.")
    wanted_CX, found_CX = (maps.transpose(0, 1).flatten(1).double() for maps in (wanted_NCHW, found_NCHW))
    squares_CC = wanted_CX.square().sum(1)[:, None] + found_CX.square().sum(1) - 2 * wanted_CX @ found_CX.T
    channels, left_C = len(squares_CC), torch.arange(len(squares_CC))
    for _ in range(channels):
        one, other = divmod(int(squares_CC.argmin()), channels)
        left_C[other] = one
        squares_CC[one], squares_CC[:, other] = math.inf, math.inf
    norm = float(found_CX.norm())
    return float((wanted_CX[left_C] - found_CX).norm()) / norm if norm else 0.0
