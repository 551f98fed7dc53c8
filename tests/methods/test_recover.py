"""Recovery: limits of Hinton's objective, and that it lowers the error it is asked to lower."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.errors import DataError, UsageError
from kogata.methods import MagnitudePruning, Recover
from kogata.methods.base.compose import chain
from kogata.network.batch import evaluating
from kogata.network.sites import model_bits
from kogata.testing.comparisons import assert_near
from kogata.training.teaching import match

TARGETS = torch.tensor([0, 2, 1, 4, 3, 0])


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logits)[0]


def test_soft_targets_are_hintons_formula() -> None:
    student, teacher = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    for t in (1.0, 3.0):
        p, q = torch.softmax(teacher / t, 1), torch.softmax(student / t, 1)
        by_hand = t**2 * sum(float(a * (a / b).log()) for a, b in zip(p.flatten(), q.flatten(), strict=True)) / 6
        assert float(match(student, teacher, TARGETS, t)) == pytest.approx(by_hand)


def test_hot_limit_is_logit_regression() -> None:
    """T → ∞: the gradient is that of ½ ‖z − v‖² / classes on centred logits (equation 4 of the paper)."""
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    wanted = torch.randn(6, 5, dtype=torch.float64)
    centred = (logits - logits.mean(1, keepdim=True)) - (wanted - wanted.mean(1, keepdim=True))
    regression = gradient(centred.square().sum() / 2 / 5 / 6, logits)
    errors = [
        float((gradient(match(logits, wanted, TARGETS, t), logits) - regression).norm() / regression.norm())
        for t in (10.0, 100.0, 1000.0)
    ]
    assert errors[2] < 1e-2
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


def test_match_is_zero_at_the_teacher_and_of_any_layout() -> None:
    maps = torch.randn(2, 5, 3, 3)
    labels = torch.randint(0, 5, (2, 3, 3))
    assert float(match(maps, maps, labels, 4.0)) == pytest.approx(0, abs=1e-6)
    other = torch.randn(2, 5, 3, 3)
    a, b = (x.permute(0, 2, 3, 1).reshape(-1, 5) for x in (maps, other))
    assert float(match(maps, other, labels, 2.0)) == pytest.approx(float(match(a, b, labels.flatten(), 2.0)), rel=1e-5)


def test_other_outputs_are_regressed() -> None:
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    wanted = float((a - b).square().sum() / b.square().sum())
    assert float(match(a, b, torch.randn(4, 3), 4.0)) == pytest.approx(wanted)
    assert float(match({"boxes": a, "n": (b,)}, {"boxes": b, "n": (b,)}, None, 4.0)) == pytest.approx(
        float((a - b).square().sum() / (2 * b.square().sum()))
    )


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_objective_mixes_labels_and_teacher(alpha: float) -> None:
    teacher = nn.Linear(4, 5)
    inputs, output = torch.randn(6, 4), torch.randn(6, 5)
    task = Task(calibration=[inputs], loss=functional.cross_entropy)
    found = Recover(epochs=1, distill=alpha, temperature=2.0).objective(task, teacher)(output, inputs, TARGETS)
    labels, soft = functional.cross_entropy(output, TARGETS), match(output, teacher(inputs).detach(), TARGETS, 2.0)
    assert float(found) == pytest.approx(float((1 - alpha) * labels + alpha * soft))


def test_labels_alone_never_call_the_teacher() -> None:
    class Untouchable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("the teacher was called")

    inputs = torch.randn(6, 4)
    task = Task(calibration=[inputs], loss=functional.cross_entropy)
    output = torch.randn(6, 5)
    found = Recover(epochs=1, distill=0.0).objective(task, Untouchable())(output, inputs, TARGETS)
    assert float(found) == float(functional.cross_entropy(output, TARGETS))


def test_without_a_loss_the_teacher_is_all() -> None:
    teacher, inputs, output = nn.Linear(4, 5), torch.randn(6, 4), torch.randn(6, 5)
    found = Recover(epochs=1, distill=0.2).objective(Task(calibration=[inputs]), teacher)(output, inputs, None)
    assert float(found) == pytest.approx(float(match(output, teacher(inputs).detach(), None, 4.0)))


def test_recovery_on_unlabelled_data_comes_closer_to_the_original() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 6))
    inputs = torch.randn(64, 16)
    job = prepare(model, Task(calibration=[inputs], train=[inputs[:32], inputs[32:]]))
    pruned = MagnitudePruning(sparsity=0.7).apply(job)
    recovered = Recover(epochs=20, learning_rate=1e-2).apply(pruned)
    wanted = model(inputs).detach()
    with evaluating(pruned.model), evaluating(recovered.model):
        before, after = ((m(inputs) - wanted).norm() / wanted.norm() for m in (pruned.model, recovered.model))
    assert float(after) < 0.6 * float(before)
    assert [epoch.epoch for epoch in recovered.epochs] == list(range(1, 21))
    assert recovered.epochs[-1].loss < recovered.epochs[0].loss


def test_a_perfect_student_stays() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(16, 6))
    inputs = torch.randn(32, 16)
    job = prepare(model, Task(calibration=[inputs], train=[inputs]))
    after = Recover(epochs=3, learning_rate=1e-3).apply(job)
    assert_near(after.model(inputs).detach(), model(inputs).detach(), 1e-2)


def test_vector_outputs_of_equal_length_are_regressed() -> None:
    """One-dimensional outputs have no class axis, whatever the targets are."""
    a, b = torch.randn(6), torch.randn(6)
    assert float(match(a, b, TARGETS, 4.0)) == pytest.approx(float((a - b).square().sum() / b.square().sum()))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"distill": 1.5}, "distill"), ({"distill": float("nan")}, "distill"), ({"temperature": 0.0}, "temperature"),
        ({"epochs": 0}, "epochs"), ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"), ({"patience": 0}, "patience"),
    ],
)  # fmt: skip
def test_settings_are_checked(settings: dict[str, float], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        Recover(**{"epochs": 1} | settings)  # type: ignore[arg-type]


def test_no_training_data() -> None:
    job = prepare(nn.Linear(4, 2), Task(calibration=[torch.randn(2, 4)]))
    with pytest.raises(DataError, match=r"recover: .* has no training data"):
        chain(Recover(epochs=1)).apply(job)
    assert model_bits(job.model) > 0
