"""Soft weight sharing: likelihood and gradients against explicit loops, merging by hand, and what training ends in."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.errors import UsageError
from kogata.forms import Codebook, Masked
from kogata.methods import MagnitudePruning, Recover
from kogata.methods.sharing.soft_weight_sharing import Mixture, SoftWeightSharing, negative_log_likelihood
from kogata.network.sites import form_at, sites_of

RECOVER = Recover(epochs=1, learning_rate=5e-3)


def mixture(means: list[float], deviations: list[float], shares: list[float]) -> Mixture:
    means_K, deviations_K, shares_K = (torch.tensor(x, dtype=torch.float64) for x in (means, deviations, shares))
    return Mixture(means_K, -2 * deviations_K.log(), shares_K.log())


def density(w: float, means: list[float], deviations: list[float], shares: list[float]) -> float:
    """Σ π N(w | μ, σ²), by the textbook."""
    return sum(
        share * math.exp(-((w - mean) ** 2) / (2 * d**2)) / (d * math.sqrt(2 * math.pi))
        for mean, d, share in zip(means, deviations, shares, strict=True)
    )


MEANS, DEVIATIONS, SHARES = [0.0, -0.3, 0.25], [0.05, 0.1, 0.2], [0.6, 0.3, 0.1]


def test_likelihood_is_the_closed_form() -> None:
    weights = [torch.randn(7, 5) * 0.3, torch.randn(1100) * 0.1]  # more than one block of the kernel
    wanted = -sum(math.log(density(float(w), MEANS, DEVIATIONS, SHARES)) for part in weights for w in part.flatten())
    found = negative_log_likelihood(weights, mixture(MEANS, DEVIATIONS, SHARES))
    assert float(found) == pytest.approx(wanted, rel=1e-6)


def test_a_weight_far_from_all_components_has_a_finite_likelihood() -> None:
    """exp(−γ d² / 2) is an exact 0 in floats long before that."""
    weight = torch.tensor([50.0], requires_grad=True)
    found = negative_log_likelihood([weight], mixture([0.0, 1.0], [0.02, 0.02], [0.5, 0.5]))
    assert float(found.detach()) == pytest.approx(
        49**2 / (2 * 0.02**2) + math.log(0.02 * math.sqrt(2 * math.pi) / 0.5), rel=1e-6
    )
    found.backward()
    assert weight.grad is not None
    assert float(weight.grad) == pytest.approx(49 / 0.02**2, rel=1e-6)


def test_gradients_are_those_of_automatic_differentiation() -> None:
    """Of the weights, means, log precisions and log shares: the kernel against autograd through the plain formula."""
    weight = (torch.randn(40, dtype=torch.float64) * 0.3).float().double().requires_grad_()
    start = mixture(MEANS, DEVIATIONS, SHARES)
    parameters = [tensor.clone().requires_grad_() for tensor in (start.means, start.log_precisions, start.log_shares)]
    means, log_precisions, log_shares = parameters
    terms = log_shares + log_precisions / 2 - log_precisions.exp() * (weight[:, None] - means).square() / 2
    wanted = torch.autograd.grad(-terms.logsumexp(1).sum(), [weight, *parameters])
    single = weight.detach().float().requires_grad_()
    found = torch.autograd.grad(negative_log_likelihood([single], Mixture(*parameters)), [single, *parameters])
    for ours, theirs in zip(found, wanted, strict=True):
        assert float((ours.double() - theirs).norm() / theirs.norm()) < 1e-6


def test_penalty_is_the_likelihood_and_the_hyper_priors() -> None:
    layer = nn.Linear(6, 5, bias=False)
    method = SoftWeightSharing(recover=RECOVER, components=2, strength=0.5, zero=0.9, width=0.1)
    net = method.begin(layer)
    means = [0.0, *net.get_parameter("means").tolist()]
    with torch.no_grad():
        net.get_parameter("log_precisions").copy_(torch.tensor([5.0, 4.0, 3.0]))
        net.get_parameter("logits").copy_(torch.tensor([2.0, 1.0, 0.0]))
    shares = [math.exp(x) / sum(map(math.exp, (2, 1, 0))) for x in (2, 1, 0)]
    precisions = [math.exp(x) for x in (5, 4, 3)]
    likelihood = sum(
        math.log(density(w, means, [p**-0.5 for p in precisions], shares)) for w in layer.weight.flatten().tolist()
    )
    gamma = sum(a * math.log(p) - a * 0.1**2 * p for a, p in zip((5000, 250, 250), precisions, strict=True))
    beta = 30 * (0.9 * math.log(shares[0]) + 0.1 * math.log(1 - shares[0]))
    assert float(net.penalty().detach()) == pytest.approx(-0.5 * (likelihood + gamma + beta), rel=1e-5)


def test_close_components_merge_into_their_moments() -> None:
    merged = mixture([0.0, 0.50, 0.51, -0.4], [0.02, 0.02, 0.02, 0.02], [0.7, 0.1, 0.05, 0.15]).merged()
    assert merged.means.tolist() == pytest.approx([0.0, (0.1 * 0.50 + 0.05 * 0.51) / 0.15, -0.4])
    assert merged.log_shares.exp().tolist() == pytest.approx([0.7, 0.15, 0.15])
    spread = 0.02**2 + (2 / 3) * (1 / 3) * 0.01**2  # within, and between at shares 2/3 and 1/3
    assert (-merged.log_precisions).exp().tolist() == pytest.approx([0.02**2, spread, 0.02**2])


def test_what_merges_with_component_zero_has_mean_zero() -> None:
    merged = mixture([0.0, 0.01, 0.4], [0.02, 0.02, 0.02], [0.6, 0.2, 0.2]).merged()
    assert merged.means.tolist() == pytest.approx([0.0, 0.4])
    assert float((-merged.log_precisions[0]).exp()) == pytest.approx(0.02**2 + 0.25 * 0.01**2)


def test_one_width_apart_is_the_limit_of_merging() -> None:
    """γ d² = 1 for components of equal width."""
    for gap, count in ((0.0199, 2), (0.0201, 3)):
        assert len(mixture([0.0, 0.5, 0.5 + gap], [0.02] * 3, [0.4, 0.3, 0.3]).merged().means) == count


def test_responsible_is_the_largest_term() -> None:
    values = torch.linspace(-1, 1, 201)
    found = mixture(MEANS, DEVIATIONS, SHARES).responsible(values)
    for w, k in zip(values.tolist(), found.tolist(), strict=True):
        terms = [density(w, [m], [d], [s]) for m, d, s in zip(MEANS, DEVIATIONS, SHARES, strict=True)]
        assert terms[k] == max(terms)


def test_weights_are_pruned_or_take_the_mean_of_their_component() -> None:
    weight = torch.tensor([[0.01, -0.02, 0.48, 0.52], [0.0, -0.41, -0.39, 0.5]])
    form = mixture([0.0, 0.5, -0.4], [0.02] * 3, [0.5, 0.3, 0.2]).encode(weight)
    assert form.describe() == "masked(codebook)"
    assert torch.allclose(form.dense(), torch.tensor([[0, 0, 0.5, 0.5], [0, -0.4, -0.4, 0.5]]))
    alone = mixture([0.0, 0.5], [0.02] * 2, [0.5, 0.5])
    assert isinstance(alone.encode(torch.tensor([0.49, 0.51])), Codebook)
    assert alone.encode(torch.tensor([0.01, -0.03, 0.02])).dense().tolist() == pytest.approx([0, -0.03, 0])


def regression() -> tuple[nn.Module, Task]:
    """A linear layer whose true weights are 0, ½ and −½."""
    torch.manual_seed(0)
    true = torch.tensor([0.0, 0.0, 0.0, 0.5, -0.5])[torch.randint(5, (8, 32))]
    inputs = torch.randn(256, 32)
    layer = nn.Linear(32, 8, bias=False)
    with torch.no_grad():
        layer.weight.copy_(true + 0.04 * torch.randn(8, 32))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean()

    batches = list(zip(inputs.split(32), (inputs @ true.T).split(32), strict=True))
    return layer, Task(calibration=[inputs], train=batches, loss=loss)


def test_training_finds_the_shared_values() -> None:
    layer, task = regression()
    before = layer.state_dict()["weight"].clone()
    method = SoftWeightSharing(
        recover=Recover(epochs=30, learning_rate=2e-3, distill=0.0), components=6, strength=1e-5, zero=0.6
    )
    job = method.apply(prepare(layer, task))
    form = form_at(job.model, sites_of(job.model)[0])
    assert form.describe() == "masked(codebook)"
    values = form.dense().detach()
    assert sorted({round(v, 2) for v in values.flatten().tolist()}) == pytest.approx([-0.5, 0, 0.5], abs=0.02)
    inputs, wanted = next(iter(task.train or ()))
    assert float((inputs @ values.T - wanted).norm()) < 0.2 * float((inputs @ before.T - wanted).norm())
    assert torch.equal(layer.state_dict()["weight"], before)


def test_on_a_pruned_weight_the_masks_are_one() -> None:
    layer, task = regression()
    pruned = MagnitudePruning(sparsity=0.5).apply(prepare(layer, task))
    job = SoftWeightSharing(recover=RECOVER, components=4, strength=1e-5, zero=0.5).apply(pruned)
    forms = [form_at(stage.model, sites_of(layer)[0]) for stage in (pruned, job)]
    assert forms[1].describe() == "masked(codebook)"
    first, second = (form.mask for form in forms if isinstance(form, Masked))
    assert not bool((second & ~first).any())
    assert int(second.sum()) < int(first.sum())  # the small ones among the kept are pruned as well


def test_one_mixture_for_all_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    net = SoftWeightSharing(recover=RECOVER, components=3).begin(model)
    names = [name for name, _ in net.named_parameters() if not name.startswith("model.")]
    assert names == ["means", "log_precisions", "logits"]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    (net(torch.randn(5, 8)).square().mean() + net.penalty()).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    optimizer.step()
    net.step(progress=1.0)
    forms = [form_at(net.finish(), site) for site in sites_of(model) if site.kind == "linear"]
    assert all(isinstance(part, Codebook | Masked) for part in forms)
    for one, other in itertools.pairwise(forms):
        assert one is not other


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"components": 0}, "components"), ({"components": 2**15}, "components"), ({"strength": 0.0}, "strength"),
        ({"strength": float("nan")}, "strength"), ({"zero": 1.0}, "zero"), ({"zero": 0.0}, "zero"), ({"width": 0.0}, "width"),
        ({"width": float("inf")}, "width"),
    ],
)  # fmt: skip
def test_settings_are_checked(settings: dict[str, float], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        SoftWeightSharing(**{"recover": RECOVER} | settings)  # type: ignore[arg-type]
