"""The sparse mixture against the dense one, a Monte Carlo estimate of the load, and balance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import kogata
from kogata.errors import UsageError
from kogata.methods import GPTQ, ChannelPruning
from kogata.methods.base.method import Method
from kogata.nn.experts import Experts, probability, squared_variation


def layer_of(k: int) -> Experts:
    torch.manual_seed(0)
    layer = Experts([nn.Linear(5, 3) for _ in range(4)], features=5, k=k)
    nn.init.normal_(layer.gate.weight)
    nn.init.normal_(layer.noise.weight)
    return layer


@torch.no_grad()
def by_hand(layer: Experts, x_ND: Tensor) -> Tensor:
    """Every expert on every input."""
    scores_NE = layer.gate(x_ND)
    low = scores_NE.sort(1, descending=True).values[:, layer.k - 1 : layer.k]
    gates_NE = scores_NE.masked_fill(scores_NE < low, -torch.inf).softmax(1)
    return sum((gates_NE[:, [e]] * expert(x_ND) for e, expert in enumerate(layer.experts)), torch.zeros(len(x_ND), 3))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_it_is_the_dense_mixture_of_the_k_best(k: int) -> None:
    layer, x = layer_of(k).eval(), torch.randn(9, 5)
    assert torch.allclose(layer(x), by_hand(layer, x), atol=1e-6)
    assert torch.allclose(layer(x.reshape(3, 3, 5)), by_hand(layer, x).reshape(3, 3, 3), atol=1e-6)


def test_each_expert_sees_only_its_inputs() -> None:
    layer, seen = layer_of(1).eval(), list[int]()
    for expert in layer.experts:
        expert.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    layer(torch.randn(64, 5))
    assert sum(seen) == 64


@torch.no_grad()
@pytest.mark.parametrize("k", [1, 2, 3])
def test_probability_is_how_often_an_expert_would_be_chosen(k: int) -> None:
    torch.manual_seed(1)
    clean, deviation = torch.randn(3, 4), 0.5 + torch.rand(3, 4)
    noisy = clean + deviation * torch.randn(3, 4)
    found = probability(clean, noisy, deviation, k)
    for expert in range(4):
        trials = noisy.expand(20_000, 3, 4).clone()
        trials[:, :, expert] = clean[:, expert] + deviation[:, expert] * torch.randn(20_000, 3)
        chosen = (trials.topk(k, dim=2).indices == expert).any(2).float().mean(0)
        assert torch.allclose(found[:, expert], chosen, atol=0.015)


@torch.no_grad()
def test_a_balanced_load_costs_nothing() -> None:
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0])
    turned = torch.stack([scores.roll(n) for n in range(4)])  # each expert comes first, second, third and last once
    load = probability(turned, turned + 0.1, torch.ones(4, 4), 2).sum(0)
    assert float(squared_variation(load)) < 1e-12
    assert float(squared_variation(torch.tensor([4.0, 0.0, 0.0, 0.0]))) == pytest.approx(3.0)


def test_the_penalty_spreads_the_load() -> None:
    layer, x = layer_of(1), torch.randn(128, 5) + 1
    layer.gate.weight.data[0] += 2  # expert 0 takes nearly all
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    before = layer.eval().gate(x).argmax(1).bincount(minlength=4).float()
    layer.train()
    for _ in range(150):
        layer(x)
        optimizer.zero_grad()
        layer.penalty.backward()
        optimizer.step()
    after = layer.gate(x).argmax(1).bincount(minlength=4).float()
    assert float(squared_variation(after)) < 0.3 * float(squared_variation(before))


def test_k_must_fit() -> None:
    with pytest.raises(UsageError, match="k is 3; expected 1 to 2"):
        Experts([nn.Linear(5, 3), nn.Linear(5, 3)], features=5, k=3)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        experts = [nn.Sequential(nn.Linear(32, 40), nn.ReLU(), nn.Linear(40, 32)) for _ in range(4)]
        self.first, self.mixture, self.last = nn.Linear(16, 32), Experts(experts, features=32, k=2), nn.Linear(32, 5)
        nn.init.normal_(self.mixture.gate.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.mixture(torch.relu(self.first(x))))


@pytest.mark.parametrize("method", [GPTQ(bits=4), ChannelPruning(sparsity=0.5)])
def test_a_mixture_is_compressed_and_its_graph_takes_any_number_of_inputs(method: Method, tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = kogata.Task(calibration=[torch.randn(24, 16), torch.randn(7, 16)])
    result = kogata.compress(Mixed().eval(), task, method, output=tmp_path / "run")
    changed = [row.site for row in result.report.layers if "experts" in row.site]
    assert len(changed) == 8
    session = kogata.open(result.path)
    for count in (1, 5, 24, 60):
        x = torch.randn(count, 16)
        assert torch.allclose(torch.as_tensor(session(x)), result.model(x), atol=1e-5)
