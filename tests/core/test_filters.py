"""Layers with transferred filters: turning the image permutes the maps, and all other identities, by loops."""

from __future__ import annotations

import math
from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import kogata
from kogata.engines import onnx_graph
from kogata.engines.lowering.lower import lower
from kogata.engines.onnxruntime import OnnxSession
from kogata.errors import DataError, UsageError
from kogata.forms.filter_maps import Crops, Opposite, Orbit, Repeat, compose, inverse, moved
from kogata.forms.tied import Tied
from kogata.network import surgery
from kogata.network.sites import form_of
from kogata.nn.filters import (
    CReLU,
    CyclicPool,
    CyclicRoll,
    CyclicSlice,
    GroupBatchNorm2d,
    GroupPool,
    MultiBias,
    doubly_convolution,
    equivariance,
    group_convolution,
    multi_bias_convolution,
    opposite_convolution,
)
from kogata.storage.dense import dense_bytes
from kogata.storage.load import load
from kogata.storage.write import pack, save, write_file
from kogata.testing.comparisons import assert_near


def spread(model: nn.Module) -> nn.Module:
    """Statistics, scales and shifts that a mix-up of channels would show."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.3, 1.5)
    return model.eval()


def group_net(*, mirrored: bool) -> nn.Sequential:
    """Two group convolutions with all that may stand between them; the maps are the output."""
    order = 8 if mirrored else 4
    first = group_convolution(3, 4, 3, stacked=False, mirrored=mirrored, padding=1)
    second = group_convolution(4, 5, 3, stacked=True, mirrored=mirrored)
    net = nn.Sequential(
        first, GroupBatchNorm2d(4, order), nn.ReLU(), nn.MaxPool2d(2), second, GroupBatchNorm2d(5, order), nn.ReLU()
    )
    spread(net)
    return net


def turned(images: Tensor, element: int) -> Tensor:
    """Independent of the code under test: places are looked up one by one."""
    size = images.shape[-1]
    out = torch.empty_like(images)
    for y in range(size):
        for x in range(size):
            v, u = y, x
            for _ in range(element % 4):  # a quarter turn to the left shows what was at [x, size − 1 − y]
                v, u = u, size - 1 - v
            out[..., y, x] = images[..., v, size - 1 - u if element >= 4 else u]
    return out


@pytest.mark.parametrize("element", range(8))
def test_moves_are_a_group(element: int) -> None:
    image = torch.randn(4, 4)
    assert torch.equal(moved(image, element), turned(image, element))
    assert torch.equal(moved(moved(image, element), inverse(element)), image)
    for other in range(8):
        assert torch.equal(moved(moved(image, other), element), moved(image, compose(element, other)))


@pytest.mark.parametrize("mirrored", [False, True])
def test_turning_the_image_turns_the_maps_and_permutes_them(mirrored: bool) -> None:
    net, images, order = group_net(mirrored=mirrored), torch.randn(2, 3, 12, 12), 8 if mirrored else 4
    with torch.no_grad():
        maps = net(images).unflatten(1, (5, order))
        for g in range(order):
            expected = torch.stack([turned(maps[:, :, compose(inverse(g), h)], g) for h in range(order)], 2)
            assert_near(net(turned(images, g)).unflatten(1, (5, order)), expected, 1e-5)
            assert float((maps - expected).norm()) > 0.1 * float(maps.norm()) or g == 0  # it did move
        pooled = GroupPool(order)(maps.flatten(1, 2)).mean((2, 3))
        assert_near(GroupPool(order)(net(turned(images, order - 1))).mean((2, 3)), pooled, 1e-5)


def test_a_group_s_maps_share_statistics_scale_and_shift() -> None:
    norm, maps = GroupBatchNorm2d(3, 4), torch.randn(5, 12, 6, 6) * 3 + 1
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.uniform_(norm.bias)
    out = norm(maps).detach()
    for group in range(3):
        members = maps[:, 4 * group : 4 * group + 4]
        mean, deviation = members.mean(), (members.var(correction=0) + norm.eps).sqrt()
        wanted = (members - mean) / deviation * norm.weight[group] + norm.bias[group]
        assert_near(out[:, 4 * group : 4 * group + 4], wanted, 1e-5)
    assert norm.running_mean is not None
    assert norm.running_mean.shape == (3,)
    assert_near(norm.eval()(maps)[:, 4:8], functional.batch_norm(
        maps[:, 4:8].reshape(5, 1, 24, 6), norm.running_mean[1:2], norm.get_buffer("running_var")[1:2],
        norm.weight[1:2], norm.bias[1:2],
    ).reshape(5, 4, 6, 6), 1e-6)  # fmt: skip


def test_slice_convolution_roll_is_a_convolution_with_turned_filters() -> None:
    plain, images = nn.Conv2d(3, 5, 3, padding=1, bias=False), torch.randn(2, 3, 8, 8)
    tied = group_convolution(3, 5, 3, stacked=False, padding=1)
    form = form_of(tied, "weight")
    assert isinstance(form, Tied)
    with torch.no_grad():
        form.base.get_parameter("values").copy_(plain.weight)
        rolled = CyclicRoll()(plain(CyclicSlice()(images)))[:2]  # [N, turn · filter, H, W] of the image as it is
        by_filter = rolled.unflatten(1, (4, 5)).transpose(1, 2).flatten(1, 2)
        # the map of an image turned by t, turned back, is that of the filter turned back by t
        wanted = tied(images).unflatten(1, (5, 4))[:, :, [0, 3, 2, 1]].flatten(1, 2)
    assert_near(by_filter, wanted, 1e-5)


def test_a_cyclic_net_does_not_see_how_the_image_is_turned() -> None:
    net = nn.Sequential(
        CyclicSlice(), nn.Conv2d(3, 4, 3), nn.ReLU(), CyclicRoll(), nn.Conv2d(16, 6, 3), nn.ReLU(), CyclicRoll(), nn.Flatten(),
        nn.Linear(24 * 16, 7), CyclicPool(),
    )  # fmt: skip
    images = torch.randn(2, 3, 8, 8)
    wanted = net(images).detach()
    for turns in range(4):
        assert_near(net(turned(images, turns)), wanted, 1e-5)
    maps = nn.Sequential(*list(net)[:6], CyclicPool())
    assert_near(maps(turned(images, 1)), turned(maps(images).detach(), 1), 1e-5)


def test_opposite_filters_and_relu_are_crelu() -> None:
    layer, images = opposite_convolution(3, 4, 3, padding=1), torch.randn(2, 3, 6, 6)
    half = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    with torch.no_grad():
        half.weight.copy_(layer.weight[::2])
        out, wanted = layer(images).relu(), CReLU()(half(images))
    assert_near(torch.cat([out[:, ::2], out[:, 1::2]], 1), wanted, 1e-6)
    assert_near(wanted, torch.cat([half(images).relu(), (-half(images)).relu()], 1), 1e-6)


def test_biases_cut_one_map_at_several_levels() -> None:
    maps, biases = torch.randn(2, 3, 4, 4), MultiBias(3, 2)
    assert_near(biases.bias, torch.tensor([-0.5, 0.5] * 3), 1e-6)
    nn.init.normal_(biases.bias)
    out = biases(maps).detach()
    for c in range(3):
        for k in range(2):
            assert_near(out[:, 2 * c + k], maps[:, c] + biases.bias[2 * c + k].item(), 1e-6)
    layer = multi_bias_convolution(3, 4, 3, biases=3)
    weight = layer.weight.detach().unflatten(0, (4, 3))
    assert torch.equal(weight[:, 0], weight[:, 1])
    assert torch.equal(weight[:, 0], weight[:, 2])


def test_filters_are_all_crops_of_larger_ones() -> None:
    layer, images = doubly_convolution(2, 3, 3, margin=2), torch.randn(1, 2, 7, 7)
    form = form_of(layer, "weight")
    assert isinstance(form, Tied)
    meta, out = form.base.dense().detach(), layer(images).detach()
    assert layer.weight.shape == (27, 2, 3, 3)
    for m in range(3):
        for number, (y, x) in enumerate((y, x) for y in range(3) for x in range(3)):
            for v in range(5):
                for u in range(5):
                    wanted = (meta[m, :, y : y + 3, x : x + 3] * images[0, :, v : v + 3, u : u + 3]).sum()
                    assert float(out[0, 9 * m + number, v, u]) == pytest.approx(float(wanted), abs=1e-5)


def test_nets_train_and_are_stored_at_the_size_of_their_base(tmp_path: Path) -> None:
    net = group_net(mirrored=False).train()
    before = [parameter.detach().clone() for parameter in net.parameters() if parameter.numel()]
    optimizer = torch.optim.SGD([parameter for parameter in net.parameters() if parameter.requires_grad], 0.1)
    net(torch.randn(4, 3, 12, 12)).square().mean().backward()
    optimizer.step()
    after = [parameter for parameter in net.parameters() if parameter.numel()]
    assert all(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
    save(net, tmp_path / "net.kogata")
    assert (tmp_path / "net.kogata").stat().st_size < dense_bytes(surgery.plain(net)) / 2
    images = torch.randn(2, 3, 12, 12)
    loaded = load(tmp_path / "net.kogata", into=group_net(mirrored=False))
    assert torch.equal(loaded.eval()(images), net.eval()(images))


def test_copies_lower_to_fewer_filters_in_every_engine(tmp_path: Path) -> None:
    net = nn.Sequential(
        opposite_convolution(3, 4, 3, padding=1, stride=2), nn.ReLU(), multi_bias_convolution(8, 3, 3, biases=2), nn.ReLU(),
        doubly_convolution(6, 2, 2),
    )  # fmt: skip
    images, lowered = torch.randn(2, 3, 12, 12), lower(net)
    dense = surgery.plain(net)(images)
    filters = [m.out_channels for m in lowered.modules() if isinstance(m, nn.Conv2d)]
    assert filters == [4, 3, 8]
    assert_near(lowered(images), dense, 1e-5)
    proto = onnx_graph.export(lowered.eval(), images)
    assert_near(OnnxSession(proto)(images), dense, 1e-5)
    write_file(tmp_path / "net.kogata", pack(net, onnx_graph.bind(proto, net)))
    assert_near(kogata.open(tmp_path / "net.kogata")(images), dense, 1e-5)


def test_equivariance_is_zero_for_group_layers_and_large_for_others() -> None:
    images = torch.randn(8, 3, 12, 12)
    for element, mirrored in ((1, False), (2, True)):
        found = equivariance(group_net(mirrored=mirrored), images, turns=element, mirrored=mirrored)
        assert list(found) == ["0", "4"]
        assert max(found.values()) < 1e-5
    other = equivariance(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), images)
    assert all(0.2 < error < 1.5 for error in other.values())


def test_equivariance_by_brute_force() -> None:
    layer, images = nn.Conv2d(2, 4, 3, bias=False), torch.randn(4, 2, 6, 6)
    with torch.no_grad():  # three filters turn into each other but for noise, one does not
        for t in range(3):
            layer.weight[[2, 0, 3][t]] = torch.rot90(layer.weight[1], t + 1, (1, 2)) + 0.05 * torch.randn(2, 3, 3)
        ours, theirs = turned(layer(images), 1), layer(turned(images, 1))
    least = min(float((ours[:, list(order)] - theirs).norm() / theirs.norm()) for order in permutations(range(4)))
    assert 0.01 < least < 0.6
    assert equivariance(layer, images)[""] == pytest.approx(least, rel=1e-5)


def test_shapes_are_checked() -> None:
    with pytest.raises(DataError, match="square"):
        equivariance(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 5, 6))
    with pytest.raises(DataError, match="not square"):
        equivariance(nn.Conv2d(3, 4, (3, 1)), torch.randn(1, 3, 5, 5))
    with pytest.raises(UsageError, match="outputs is 0"):
        group_convolution(3, 0, 3, stacked=False)
    with pytest.raises(UsageError, match="channels is 0"):
        MultiBias(0)


@pytest.mark.parametrize(
    ("map", "shape", "size"),
    [
        (Repeat(2), (3, 2, 3, 3), 27),
        (Opposite(), (4, 2, 3, 3), 35),
        (Orbit(False, False), (4, 2, 3, 1), 6),
        (Orbit(False, True), (4, 2, 3, 3), 18),
        (Orbit(True, False), (12, 2, 3, 3), 27),
        (Crops(4), (6, 2, 3, 3), 32),
        (Crops(3), (4, 2, 3, 3), 18),
        (Crops(4), (4, 2, 3, 3), math.prod((2, 2, 4, 4))),
    ],
)
def test_a_base_that_does_not_fit_is_refused(map: Repeat | Opposite | Orbit | Crops, shape: tuple[int, ...], size: int) -> None:
    with pytest.raises(ValueError, match=r"transforms|square|orientations|crops"):
        map.index(shape, size)
    for wrong in (lambda: Repeat(1), lambda: Crops(0), lambda: Orbit(1, False)):  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="expected"):
            wrong()
