"""BinaryNet: a layer is a count of equal bits."""

from __future__ import annotations

import torch
from torch import nn

from kogata.job import Where
from kogata.methods import BinaryNet
from kogata.methods.base.compose import only
from kogata.network.quantizers import Sign, quantizers_of
from kogata.network.sites import model_bits
from tests.methods.training import QUICK, accuracy, trained

INNER = Where(layers=("3", "6"))


def test_a_layer_counts_equal_bits() -> None:
    """Rows of w_b, inputs a_b: the sum of products of signs is 2 popcount(XNOR) − n."""
    model = nn.Sequential(nn.ReLU(), nn.Linear(50, 7, bias=False))
    net = BinaryNet(recover=QUICK).begin(model)
    x = torch.randn(20, 50)
    weight = model[1].get_parameter("weight").detach()
    a, w = (x >= 0).numpy(), (weight >= 0).numpy()
    counts = [[sum(p == q for p, q in zip(row, col, strict=True)) for col in w] for row in a]
    wanted = 2 * torch.tensor(counts) - 50
    found = net(x).detach() / float(weight.abs().mean().half())
    assert torch.equal(found.round().long(), wanted)


def test_gradient_passes_where_the_input_is_small() -> None:
    x = torch.tensor([[-2.0, -1.0, -0.3, 0.0, 0.7, 1.0, 1.5]], requires_grad=True)
    upstream = torch.arange(1.0, 8.0)[None]
    out = Sign()(x)
    assert torch.equal(out, torch.tensor([[-1.0, -1, -1, 1, 1, 1, 1]]))
    (out * upstream).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, upstream * torch.tensor([[0.0, 1, 1, 1, 1, 1, 0]]))


def test_training_learns_and_the_model_keeps_its_signs() -> None:
    job = trained()
    after = only(BinaryNet(recover=QUICK), INNER).apply(job)
    assert [path for path, _ in quantizers_of(after.model)] == ["2", "5"]
    assert not list(quantizers_of(job.model))
    assert accuracy(after.model) > 0.6
    assert model_bits(after.model) < model_bits(job.model)
