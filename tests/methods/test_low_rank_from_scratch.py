"""Factors with batch normalization between them: shapes, the product they stand for, training and the file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kogata.errors import NotApplicable, UsageError
from kogata.nn.low_rank import separable_network
from kogata.storage.load import load
from kogata.storage.write import save
from kogata.testing.comparisons import assert_near

CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)},
    {"kernel_size": 5, "stride": 3, "padding": 2, "bias": False},
    {"kernel_size": (3, 5), "padding": "same", "dilation": 2},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": 3, "padding": (2, 1), "padding_mode": "circular"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "stride": (1, 2)},
]


def filters(network: nn.Sequential) -> Tensor:
    """The dense filters that a column and a row make: of each output and input, a sum of outer products."""
    column, row = (network.get_parameter(f"{i}.weight").detach() for i in (0, 2))
    return torch.einsum("kcy,okx->ocyx", column[..., 0], row[:, :, 0])


@pytest.mark.parametrize("settings", CONVOLUTIONS)
def test_without_its_normalization_it_is_the_convolution_of_the_product(settings: dict[str, Any]) -> None:
    dense = nn.Conv2d(6, 8, **settings)
    network = separable_network(dense, 3)
    assert isinstance(network, nn.Sequential)
    images = torch.randn(2, 6, 17, 19)
    assert network(images).shape == dense(images).shape
    with torch.no_grad():
        dense.weight.copy_(filters(network))
        if dense.bias is not None:
            dense.bias.copy_(network[2].bias)  # type: ignore[arg-type]
        assert_near(nn.Sequential(network[0], network[2])(images), dense(images), 1e-5)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(8, 8, 3, groups=2), "2 groups"),
        (nn.Conv2d(8, 8, 1), "extent along one axis"),
        (nn.Conv2d(8, 8, (1, 3)), "extent along one axis"),
        (nn.Conv2d(1, 8, 3), "no fewer than the 72"),
    ],
)
def test_layers_that_cannot_be_parted_stay_and_say_so(layer: nn.Conv2d, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(layer, nn.Conv2d(8, 8, 3))
    with caplog.at_level(logging.INFO):
        network = separable_network(model, 3)
    assert network[0].weight.equal(layer.weight)  # type: ignore[index, union-attr]
    assert reason in caplog.text
    with pytest.raises(NotApplicable, match="no convolution"):
        separable_network(nn.Sequential(layer, nn.Flatten(), nn.Linear(4, 4)), 3)


def test_the_given_model_stays_and_a_shared_layer_stays_shared() -> None:
    shared = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(shared, nn.ReLU(), shared).eval()
    network = separable_network(model, 0.25)
    assert model[0] is shared
    assert network[0] is network[2]  # type: ignore[index]
    assert not any(module.training for module in network.modules())


def classifier() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 16, 2),
    )  # fmt: skip


def test_it_trains_and_its_file_loads_into_a_network_of_the_same_call(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (64,), generator=generator)
    images = torch.randn(64, 1, 8, 8, generator=generator)
    images[labels == 1, :, ::2] += 1.5  # stripes across
    network = separable_network(classifier(), 4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    losses: list[float] = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    save(network.eval(), tmp_path / "network.kogata")
    loaded = load(tmp_path / "network.kogata", into=separable_network(classifier(), 4)).eval()
    assert torch.equal(loaded(images), network(images))


@pytest.mark.parametrize("rank", [0, -1, 1.5])
def test_rank_is_checked(rank: float) -> None:
    with pytest.raises(UsageError, match="rank"):
        separable_network(classifier(), rank)
