"""Lowered products against the dense layer, for every equation that has plain layers and every way a layer reads its image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kogata.engines import ONNXRUNTIME, Costs, OnnxRuntime, onnx_graph
from kogata.engines.lowering.checked import lowered
from kogata.engines.lowering.lower import lower
from kogata.forms import Product
from kogata.forms.product import CP, PAIR, SEPARABLE, TUCKER
from kogata.network import surgery
from kogata.network.batch import evaluating
from kogata.network.sites import sites_of
from kogata.storage.load import load
from kogata.storage.read import read_file
from kogata.storage.write import pack, write_file
from kogata.testing.comparisons import assert_near

Build = Callable[..., nn.Module]


def form(equation: str, shape: torch.Size, rank: int) -> Product:
    """Random factors; a letter that no part of the shape has is a rank."""
    outputs, inputs, *kernel = shape
    sizes = {"o": outputs, "i": inputs, "k": torch.Size(kernel).numel(), "r": rank, "s": rank + 1}
    sizes |= dict(zip("hw", kernel, strict=False))
    if equation == PAIR:
        sizes["i"] = shape[1:].numel()
    letters = equation.split("->")[0].split(",")
    return Product.of(equation, [torch.randn([sizes[letter] for letter in part]) for part in letters], shape)


def attached(layer: nn.Module, equation: str, rank: int) -> nn.Sequential:
    model = nn.Sequential(layer)
    site = next(site for site in sites_of(model) if site.parameter == "weight")
    surgery.attach(model, site, form(equation, torch.Size(site.shape), rank))
    return model


def multiplications(model: nn.Module, images: Tensor) -> int:
    """Of all convolutions in one forward, by hooks: each output entry reads a filter."""
    total = 0

    def count(layer: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        total += output.numel() * layer.weight[0].numel()

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    with evaluating(model):
        model(images)
    for handle in handles:
        handle.remove()
    return total


PLANE: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "stride": {"stride": 2, "padding": 1},
    "strides differ": {"stride": (1, 2), "padding": (2, 0)},
    "dilation": {"dilation": (2, 1), "padding": 2},
    "same": {"padding": "same"},
    "same, even padding differs": {"padding": "same", "dilation": (1, 3), "kernel_size": (4, 3)},
    "valid": {"padding": "valid"},
    "circular": {"padding": (1, 2), "padding_mode": "circular"},
    "reflect": {"padding": (2, 1), "padding_mode": "reflect", "stride": (2, 1)},
    "replicate": {"padding": "same", "padding_mode": "replicate"},
    "groups": {"groups": 2, "padding": 1},
    "groups, strided": {"groups": 4, "padding": 1, "stride": (1, 2)},
    "tall": {"kernel_size": (5, 2)},
    "large": {"kernel_size": (5, 4), "padding": 2, "stride": (2, 1), "dilation": (1, 2)},
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("settings", PLANE.values(), ids=PLANE.keys())
@pytest.mark.parametrize("equation", [PAIR, SEPARABLE, TUCKER, CP[2]])
def test_planes(by_products: Costs, equation: str, settings: dict[str, Any]) -> None:
    settings = {"kernel_size": 3} | settings
    model = attached(nn.Conv2d(16, 32, **settings), equation, 2)
    images = torch.randn(3, 16, 10, 11)
    cheaper = lower(model, by_products)
    assert isinstance(cheaper[0], nn.Sequential)  # type: ignore[index]
    with evaluating(model):
        assert_near(cheaper(images), surgery.plain(model)(images), 1e-5)
    assert multiplications(cheaper, images) < multiplications(surgery.plain(model), images)
    assert not any(parameter.requires_grad for parameter in cheaper.parameters())


@pytest.mark.parametrize("settings", [{}, {"stride": 2, "padding": 2}, {"padding": "same", "dilation": 2}, {"groups": 2}])
@pytest.mark.parametrize("equation", [PAIR, TUCKER, CP[1]])
def test_lines(by_products: Costs, equation: str, settings: dict[str, Any]) -> None:
    model = attached(nn.Conv1d(16, 32, 5, **settings), equation, 2)
    rows = torch.randn(3, 16, 20)
    cheaper = lower(model, by_products)
    assert isinstance(cheaper[0], nn.Sequential)  # type: ignore[index]
    with evaluating(model):
        assert_near(cheaper(rows), surgery.plain(model)(rows), 1e-5)


def test_volumes(by_products: Costs) -> None:
    model = attached(nn.Conv3d(8, 16, 3, stride=(1, 2, 1), padding=1), TUCKER, 2)
    volumes = torch.randn(2, 8, 5, 6, 5)
    with evaluating(model):
        assert_near(lower(model, by_products)(volumes), surgery.plain(model)(volumes), 1e-5)
    assert isinstance(lower(model, by_products)[0], nn.Sequential)  # type: ignore[index]


def test_the_stages_are_the_ones_of_the_papers(by_products: Costs) -> None:
    def layers(equation: str, kernel: tuple[int, int] = (3, 5)) -> list[tuple[int, int, tuple[int, ...], int]]:
        cheaper = lower(attached(nn.Conv2d(16, 32, kernel), equation, 4), by_products)
        return [(m.in_channels, m.out_channels, m.kernel_size, m.groups) for m in cheaper.modules() if isinstance(m, nn.Conv2d)]

    assert layers(PAIR) == [(16, 4, (3, 5), 1), (4, 32, (1, 1), 1)]
    assert layers(SEPARABLE) == [(16, 4, (3, 1), 1), (4, 32, (1, 5), 1)]
    assert layers(TUCKER) == [(16, 4, (1, 1), 1), (4, 5, (3, 5), 1), (5, 32, (1, 1), 1)]
    assert layers(CP[2]) == [(16, 4, (1, 1), 1), (4, 4, (3, 1), 4), (4, 4, (1, 5), 4), (4, 32, (1, 1), 1)]
    assert layers(CP[2], (4, 5)) == [(16, 4, (1, 1), 1), (4, 4, (4, 5), 4), (4, 32, (1, 1), 1)]


@pytest.mark.parametrize(
    ("build", "equation", "rank"),
    [
        (lambda: nn.Conv2d(16, 32, 3), PAIR, 30),
        (lambda: nn.Conv2d(16, 32, 3), SEPARABLE, 40),
        (lambda: nn.Conv2d(16, 32, 3), TUCKER, 20),
        (lambda: nn.Conv2d(16, 32, 3), CP[2], 90),
        (lambda: nn.Conv2d(32, 16, 3, stride=4), TUCKER, 9),  # fewer numbers, but the first layer runs at all places
        (lambda: nn.Linear(16, 32), PAIR, 11),
        (lambda: nn.Embedding(40, 16), PAIR, 12),
    ],
)
def test_what_would_not_be_cheaper_stays_dense(by_products: Costs, build: Build, equation: str, rank: int) -> None:
    model = attached(build(), equation, rank)
    assert type(lower(model, by_products)[0]) in (nn.Conv2d, nn.Linear, nn.Embedding)  # type: ignore[index]


@pytest.mark.parametrize(("channels", "extent", "rank", "lowers"), [(32, 5, 78, False), (512, 3, 832, True)])
def test_thin_layers_that_move_more_than_they_compute_stay_dense(channels: int, extent: int, rank: int, lowers: bool) -> None:
    """Both have about a third of the products; each of the four layers would read and write more channels than the whole."""
    model = attached(nn.Conv2d(channels // 2, channels, extent), CP[2], rank)
    assert isinstance(lower(model, ONNXRUNTIME)[0], nn.Sequential) == lowers  # type: ignore[index]


class Padded(nn.Conv2d):
    """A layer that reads its weight in its own way."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(input, (0, 1, 0, 1)))


@pytest.mark.parametrize(
    ("build", "equation"),
    [
        (lambda: nn.ConvTranspose2d(16, 32, 3), TUCKER),
        (lambda: Padded(16, 32, 3), SEPARABLE),
        (lambda: nn.Embedding(400, 16, max_norm=1.0), PAIR),
        (lambda: nn.Linear(64, 64), "agc,cbh->abgh"),
    ],
)
def test_layers_that_read_their_weight_otherwise_stay_dense(by_products: Costs, build: Build, equation: str) -> None:
    layer = build()
    kind, model = type(layer), nn.Sequential(layer)
    site = next(site for site in sites_of(model) if site.parameter == "weight")
    if equation == "agc,cbh->abgh":
        product = Product.of(equation, [torch.randn(8, 8, 2), torch.randn(2, 8, 8)], site.shape)
    else:
        product = form(equation, torch.Size(site.shape), 2)
    surgery.attach(model, site, product)
    assert type(lower(model, by_products)[0]) is kind  # type: ignore[index]


def test_a_kernel_that_is_not_the_layers_stays_dense(by_products: Costs) -> None:
    """A form from a file may give the right number of entries from factors of other extents."""
    model = nn.Sequential(nn.Conv2d(16, 32, (3, 5)))
    for equation, sizes in ((SEPARABLE, [(32, 2, 3), (2, 16, 5)]), (CP[2], [(32, 2), (2, 3), (2, 5), (2, 16)])):
        product = Product.of(equation, [torch.randn(size) for size in sizes], (32, 16, 3, 5))
        surgery.attach(model, next(site for site in sites_of(model) if site.parameter == "weight"), product)
        assert type(lower(model, by_products)[0]) is nn.Conv2d  # type: ignore[index]


def test_making_layers_draws_no_random_numbers(by_products: Costs) -> None:
    model = attached(nn.Conv2d(16, 32, 3), TUCKER, 2)
    before = torch.get_rng_state()
    lower(model, by_products)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("equation", "groups"), [(SEPARABLE, 1), (TUCKER, 1), (CP[2], 1), (CP[2], 2)])
def test_onnx_runs_the_stages_from_the_factors_of_the_file(
    by_products: Costs, equation: str, groups: int, tmp_path: Path
) -> None:
    model = attached(nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=groups), equation, 2).eval()
    images = torch.randn(3, 16, 10, 11)
    cheaper = lowered(model, images, by_products)
    assert isinstance(cheaper[0], nn.Sequential)  # type: ignore[index]
    graph = onnx_graph.bind(onnx_graph.export(cheaper, images), model)
    path = tmp_path / "m.kogata"
    write_file(path, pack(model, graph))
    found = read_file(path)
    assert len(graph.bindings) >= len(form(equation, torch.Size((32, 16 // groups, 3, 3)), 2).parts())
    fresh = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=groups))
    session = OnnxRuntime().open_file(found, load(path, into=fresh), images)
    with evaluating(model):
        assert_near(session(images), model(images), 1e-4)
        assert_near(session(images[:2]), model(images[:2]), 1e-4)  # another batch size
