"""Data for distillation: mixtures lie between their parts, and what is drawn out of a teacher is what it would say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata.errors import DataError, NotApplicable, UsageError
from kogata.tasks.batches import Batches
from kogata.tasks.made import Mixup, Noise, Synthesis, class_similarity, synthesized


def test_mixtures_lie_on_the_lines_between_inputs_and_are_judged_by_the_teacher() -> None:
    torch.manual_seed(0)
    corners = torch.eye(6).repeat(50, 1)
    teacher = nn.Linear(6, 3)
    batches = Mixup(batches=[(corners, torch.zeros(300))], teacher=teacher, alpha=0.5)
    ((mixed, targets),) = list(batches)
    assert len(batches) == 1
    assert torch.allclose(mixed.sum(1), torch.ones(300), atol=1e-6)
    assert int((mixed > 1e-6).sum(1).max()) == 2, "never more than two parts"
    assert torch.equal(targets, teacher(mixed).argmax(1))
    share = mixed.max(1).values[(mixed > 1e-6).sum(1) == 2]
    assert float(share.mean()) == pytest.approx(0.818, abs=0.03), "E[max(λ, 1 − λ)] of Beta(½, ½) is ½ + 1/π"


def test_a_pass_is_repeated_by_its_seed() -> None:
    teacher = nn.Linear(6, 3)
    for batches in (Mixup(batches=[torch.randn(8, 6)], teacher=teacher), Noise(teacher=teacher, shape=(8, 6), count=2)):
        passes: list[list[tuple[Tensor, Tensor]]] = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            passes.append(list(batches))
        assert torch.equal(passes[0][0][0], passes[1][0][0])
        assert not torch.equal(passes[0][0][0], passes[2][0][0])


def test_noise_has_its_moments() -> None:
    torch.manual_seed(0)
    teacher = nn.Linear(6, 3)
    drawn = list(Noise(teacher=teacher, shape=(500, 6), count=4, mean=2.0, deviation=0.5, judge=lambda output: output))
    inputs, outputs = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    assert inputs.shape == (2000, 6)
    assert float(inputs.mean()) == pytest.approx(2.0, abs=0.02)
    assert float(inputs.std()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(outputs, teacher(inputs).detach())


def test_synthesized_inputs_give_the_outputs_that_were_drawn() -> None:
    """A wide linear teacher can give any output, so that the cross entropy falls to the entropy of what was drawn."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(40, 5)).train()
    settings = Synthesis(steps=300, temperature=1.0, concentration=0.3)
    batches = synthesized(teacher, (64, 40), 1, settings, seed=1)
    confidence = teacher(batches.inputs).detach().softmax(1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        chosen = torch.randint(5, (64,))
        wanted = torch.distributions.Dirichlet(0.3 * class_similarity(teacher, (1, 40))[chosen] + 1e-3).sample()
    assert float((confidence - wanted).norm() / wanted.norm()) < 0.02
    assert torch.equal(batches.targets, confidence.argmax(1))
    assert teacher.training
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    again = synthesized(teacher, (64, 40), 1, settings, seed=1)
    assert torch.equal(again.inputs, batches.inputs)
    assert not torch.equal(synthesized(teacher, (64, 40), 1, settings, seed=2).inputs, batches.inputs)


def test_like_classes() -> None:
    teacher = nn.Linear(2, 3, bias=False)
    teacher.weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    wanted = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.5, 1.0]])
    assert torch.allclose(class_similarity(teacher, (1, 2)), wanted)


def test_statistics_come_near_those_of_batch_normalization() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)
    )
    with torch.no_grad():
        for _ in range(60):
            teacher(3 + 2 * torch.randn(64, 1, 8, 8))
    teacher.eval()

    def gap(inputs: Tensor) -> float:
        variance, mean = torch.var_mean(teacher[0](inputs), (0, 2, 3))
        wanted = torch.cat([teacher[1].get_buffer("running_mean"), teacher[1].get_buffer("running_var")])
        return float((torch.cat([mean, variance]) - wanted).detach().norm() / wanted.norm())

    batches = synthesized(teacher, (64, 1, 8, 8), 1, Synthesis(steps=200))
    assert gap(torch.randn(64, 1, 8, 8)) > 0.5
    assert gap(batches.inputs) < 0.03
    without = synthesized(teacher, (64, 1, 8, 8), 1, Synthesis(steps=200, statistics=0.0))
    assert gap(without.inputs) > 0.3


def test_bounds_and_smoothness() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    rough, smooth = (
        synthesized(teacher, (8, 1, 8, 8), 1, Synthesis(steps=60, smoothness=v, bounds=(-0.5, 1.0))).inputs for v in (0.0, 5.0)
    )
    assert -0.5 <= float(rough.min()) < float(rough.max()) <= 1.0
    assert float(smooth.diff(dim=2).abs().mean()) < 0.5 * float(rough.diff(dim=2).abs().mean())


def test_refusals() -> None:
    with pytest.raises(UsageError, match="alpha is 0"):
        Mixup(batches=[], teacher=nn.Linear(2, 2), alpha=0.0)
    with pytest.raises(DataError, match="only float tensors"):
        list(Mixup(batches=[torch.zeros(2, 2, dtype=torch.int64)], teacher=nn.Linear(2, 2)))
    with pytest.raises(UsageError, match="steps is 0"):
        Synthesis(steps=0)
    with pytest.raises(NotApplicable, match="must end in a linear layer"):
        synthesized(nn.Sequential(nn.Linear(4, 3), nn.Unflatten(1, (3, 1))), (2, 4), 1)
    assert isinstance(synthesized(nn.Linear(4, 3), (2, 4), 2, Synthesis(steps=1)), Batches)
    assert functional.one_hot(synthesized(nn.Linear(4, 3), (2, 4), 2, Synthesis(steps=1)).targets, 3).shape == (4, 3)
