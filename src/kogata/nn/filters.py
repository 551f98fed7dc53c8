"""Layers with transferred filters, to be trained from scratch, and a measure of equivariance.

A transferred filter is a transform of another filter. Here such a layer is a plain ``nn.Conv2d`` whose weight is a ``Tied``
form: it trains, is stored at the size of its base filters, and can be pruned, shared and quantized like any other layer. Its
output channels come in groups: all transforms of the first base filter, then all of the second, and so on.

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
    """A group-equivariant convolution without a bias (Cohen and Welling 2016, 1602.07576).

    Each of ``outputs`` base filters is applied in its 4 rotations, or with ``mirrored`` in its 8 rotations and reflections. The
    input are images ``[N, inputs, H, W]``, or with ``stacked`` the feature maps ``[N, inputs · 4, H, W]`` of another such
    layer; the output are feature maps ``[N, outputs · 4, H, W]`` (with 8 for 4 if ``mirrored``). Rotating the image rotates the
    maps and permutes the members of each group, if the stride covers the image symmetrically. In place of a bias use
    :class:`GroupBatchNorm2d`, which preserves this. Raises UsageError when a count is below 1.

    >>> layer = group_convolution(3, 8, 3, stacked=False, padding=1)
    >>> tuple(layer(torch.randn(2, 3, 8, 8)).shape)
    (2, 32, 8, 8)
    """
    _check({"inputs": inputs, "outputs": outputs, "kernel": kernel})
    map = Orbit(mirrored, stacked)
    layer = nn.Conv2d(inputs * map.order if stacked else inputs, outputs * map.order, kernel, stride, padding, bias=False)
    return _tied(layer, map, (outputs, layer.in_channels, kernel, kernel))


def opposite_convolution(inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    """``outputs`` filters and their negatives, without a bias; followed by ReLU it is CReLU (Shang et al. 2016, 1603.05201).

    Maps ``[N, inputs, H, W]`` to ``[N, outputs · 2, H, W]``. Raises UsageError when a count is below 1.

    >>> tuple(opposite_convolution(3, 8, 3, padding=1)(torch.randn(2, 3, 8, 8)).shape)
    (2, 16, 8, 8)
    """
    _check({"inputs": inputs, "outputs": outputs, "kernel": kernel})
    layer = nn.Conv2d(inputs, outputs * 2, kernel, stride, padding, bias=False)
    return _tied(layer, Opposite(), (outputs, inputs, kernel, kernel))


def multi_bias_convolution(
    inputs: int, outputs: int, kernel: int, *, biases: int = 2, stride: int = 1, padding: int = 0
) -> nn.Conv2d:
    """``outputs`` filters, each with several ``biases`` (Li et al. 2016, 1604.00676).

    Maps ``[N, inputs, H, W]`` to ``[N, outputs · biases, H, W]``. The biases of a filter start evenly spaced from −½ to ½,
    which suits outputs of variance 1; equal biases would stay equal. Raises UsageError when a count is below 1.

    >>> tuple(multi_bias_convolution(3, 8, 3, biases=4, padding=1)(torch.randn(2, 3, 8, 8)).shape)
    (2, 32, 8, 8)
    """
    _check({"inputs": inputs, "outputs": outputs, "kernel": kernel, "biases": biases})
    layer = nn.Conv2d(inputs, outputs * biases, kernel, stride, padding)
    with torch.no_grad():
        _of_bias(layer).copy_(_levels(outputs, biases))
    return _tied(layer, Repeat(biases), (outputs, inputs, kernel, kernel))


def doubly_convolution(
    inputs: int, outputs: int, kernel: int, *, margin: int = 1, stride: int = 1, padding: int = 0
) -> nn.Conv2d:
    """A doubly convolutional layer without a bias (Zhai et al. 2016, 1610.09716).

    Its filters are all crops, ``kernel`` wide and high, of ``outputs`` base filters that are larger by ``margin`` in both
    directions. Maps ``[N, inputs, H, W]`` to ``[N, outputs · (margin + 1)², H, W]``. Raises UsageError when a count is below 1.

    >>> tuple(doubly_convolution(3, 8, 3, padding=1)(torch.randn(2, 3, 8, 8)).shape)
    (2, 32, 8, 8)
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
    """Make the layer's filters transforms of new base filters, drawn from the range of ``nn.Conv2d``'s initialization."""
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
    """Initial biases ``[channels · biases]``, evenly spaced from −½ to ½ in each channel."""
    return torch.linspace(-0.5, 0.5, biases).repeat(channels)


class CReLU(nn.Module):
    """Concatenated ReLU, ``ReLU([x, −x])``: ``[N, C, ...]`` to ``[N, 2C, ...]`` (Shang et al. 2016, 1603.05201).

    >>> CReLU()(torch.tensor([[1.0, -2.0]])).tolist()
    [[1.0, 0.0, 0.0, 2.0]]
    """

    def forward(self, maps: Tensor) -> Tensor:
        """See the class."""
        return torch.cat([maps, -maps], 1).relu()


class MultiBias(nn.Module):
    """Repeats each feature map with several learnt biases: ``[N, C, ...]`` to ``[N, C · biases, ...]``.

    An activation should follow. Raises UsageError when a count is below 1.

    >>> MultiBias(channels=1, biases=2)(torch.tensor([[3.0]])).tolist()
    [[2.5, 3.5]]
    """

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
    """Batch normalization of ``[N, channels · order, H, W]`` in which each group of ``order`` maps shares all parameters.

    The maps of a group share running statistics, scale and shift, so the layer commutes with permutations within a group.

    >>> norm = GroupBatchNorm2d(channels=8, order=4)
    >>> tuple(norm(torch.randn(2, 32, 5, 5)).shape), tuple(norm.running_mean.shape)
    ((2, 32, 5, 5), (8,))
    """

    def __init__(self, channels: int, order: int) -> None:
        _check({"channels": channels, "order": order})
        super().__init__(channels)
        self.order = order

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        height = input.shape[2]
        tall_NCHW = input.unflatten(1, (-1, self.order)).flatten(2, 3)  # each group as one tall map
        return super().forward(tall_NCHW).unflatten(2, (self.order, height)).flatten(1, 2)


class GroupPool(nn.Module):
    """The maximum over each group of ``order`` consecutive channels: ``[N, C · order, ...]`` to ``[N, C, ...]``.

    >>> GroupPool(2)(torch.tensor([[1.0, 3.0, 5.0, 4.0]])).tolist()
    [[3.0, 5.0]]
    """

    def __init__(self, order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, maps: Tensor) -> Tensor:
        """See the class."""
        return maps.unflatten(1, (-1, self.order)).amax(2)


class CyclicSlice(nn.Module):
    """Images ``[N, C, H, W]`` in four rotations ``[4N, C, H, W]``: first all unrotated, then all by 90°, by 180°, by 270°.

    For square images; see Dieleman, De Fauw, Kavukcuoglu 2016 (1602.02660) for this layer, CyclicRoll and CyclicPool.

    >>> net = nn.Sequential(CyclicSlice(), nn.Conv2d(3, 8, 3), CyclicRoll(), nn.Conv2d(32, 8, 3), CyclicPool())
    >>> tuple(net(torch.randn(2, 3, 9, 9)).shape)
    (2, 8, 5, 5)
    """

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return torch.cat([moved(images, turns) for turns in range(4)])


class CyclicRoll(nn.Module):
    """Gives each rotation the maps of all four, rotated to align with its own: ``[4N, C, H, W]`` to ``[4N, 4C, H, W]``."""

    def forward(self, maps: Tensor) -> Tensor:
        """See the class."""
        parts = maps.chunk(4)
        rolled = [torch.cat([moved(parts[(own + t) % 4], -t % 4) for t in range(4)], 1) for own in range(4)]
        return torch.cat(rolled)


class CyclicPool(nn.Module):
    """The mean over the four rotations, maps rotated back first: ``[4N, C, H, W]`` to ``[N, C, H, W]``, or ``[4N, C]``."""

    def forward(self, maps: Tensor) -> Tensor:
        """See the class."""
        parts = maps.chunk(4)
        back = parts if maps.ndim == 2 else [moved(part, -turns % 4) for turns, part in enumerate(parts)]
        return torch.stack(list(back)).mean(0)


def equivariance(model: nn.Module, images: Tensor, *, turns: int = 1, mirrored: bool = False) -> dict[str, float]:
    """How far the output Φ of each ``nn.Conv2d`` is from equivariant, by path: ‖T′Φ(x) − Φ(Tx)‖ / ‖Φ(Tx)‖.

    0 means exactly equivariant; unrelated maps give √2. T rotates the images by ``turns`` quarter turns, after a reflection if
    ``mirrored``; T′ does the same to the maps and permutes the channels. The permutation is matched greedily to the data,
    nearest maps first. The model runs twice, in evaluation mode.

    >>> layer = group_convolution(3, 2, 3, stacked=False, padding=1)
    >>> equivariance(nn.Sequential(layer), torch.randn(4, 3, 8, 8))["0"] < 1e-5
    True

    :param images: square images ``[N, C, H, W]``.
    :raises DataError: the images, or the feature maps of a layer, are not square.
    """
    element = turns % 4 + 4 * mirrored
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise DataError(f"equivariance: images of shape {tuple(images.shape)}; expected square images [N, C, H, W].")
    plain, turned = _maps(model, images), _maps(model, moved(images, element))
    return {name: _mismatch(moved(plain[name], element), maps, name) for name, maps in turned.items()}


def _maps(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The output of every convolution by path; a convolution that runs several times gives its last output."""
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
    """‖permuted wanted − found‖ / ‖found‖ with the channels of ``wanted`` permuted to match; 0 when ``found`` is zero."""
    if wanted_NCHW.shape != found_NCHW.shape:
        raise DataError(f"equivariance: {name} gives feature maps that are not square, {tuple(found_NCHW.shape)}.")
    wanted_CX, found_CX = (maps.transpose(0, 1).flatten(1).double() for maps in (wanted_NCHW, found_NCHW))
    squares_CC = wanted_CX.square().sum(1)[:, None] + found_CX.square().sum(1) - 2 * wanted_CX @ found_CX.T
    channels, left_C = len(squares_CC), torch.arange(len(squares_CC))
    for _ in range(channels):
        one, other = divmod(int(squares_CC.argmin()), channels)
        left_C[other] = one
        squares_CC[one], squares_CC[:, other] = math.inf, math.inf
    norm = float(found_CX.norm())
    return float((wanted_CX[left_C] - found_CX).norm()) / norm if norm else 0.0
