"""Each term of a distillation loss against a formula of its own, its invariances, and its way through the training loop."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.errors import DataError, UsageError
from kogata.flow import compress
from kogata.job import Job
from kogata.methods import BinaryConnect, Recover
from kogata.recipes.recipe import parse
from kogata.testing.comparisons import assert_equal
from kogata.training.teachers.observe import Observer, Seen, paths, pick
from kogata.training.terms import (
    TERMS,
    AttentionTransfer,
    Contrastive,
    Hints,
    Labels,
    LogitRegression,
    Regression,
    Relational,
    Review,
    SelectedNeurons,
    Similarity,
    SoftTargets,
    SumOfTerms,
    Term,
)
from kogata.training.terms.neurons import informative
from kogata.training.terms.review import pyramid
from tests.methods.training import examples, network, trained

TASK = Task(calibration=[torch.zeros(1)], loss=functional.cross_entropy)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen(output: Any = None, **layers: Tensor) -> Seen:
    return Seen(output, layers)


def loss(term: Term, student: Seen, teacher: Seen, targets: Any = None) -> float:
    return float(term.begin(student, teacher, TASK)(student, teacher, targets))


def outputs(term: Term, ours: Any, theirs: Any) -> float:
    return loss(term, seen(ours), seen(theirs))


def layers(term: Term, ours: Tensor, theirs: Tensor) -> float:
    return loss(term, seen(a=ours), seen(a=theirs))


A = ("a",)


def test_soft_targets_by_hand_along_any_axis() -> None:
    ours, theirs = random(4, 3), random(4, 3, seed=1)
    p, q = (np.exp(x.numpy() / 2) for x in (theirs, ours))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    wanted = 4 * (p * np.log(p / q)).sum() / 4
    assert outputs(SoftTargets(temperature=2.0), ours, theirs) == pytest.approx(wanted)
    sequences = ours.reshape(2, 2, 3), theirs.reshape(2, 2, 3)
    assert outputs(SoftTargets(temperature=2.0, axis=-1), *sequences) == pytest.approx(wanted)


def test_hot_soft_targets_are_logit_regression() -> None:
    """T → ∞: the gradient is 1 / classes of that of regressing logits that are centred in each row."""
    logits, wanted = random(6, 5).requires_grad_(), random(6, 5, seed=1)
    centred, target = (x - x.mean(1, keepdim=True) for x in (logits, wanted))
    regression = torch.autograd.grad(
        LogitRegression().begin(seen(centred), seen(target), TASK)(seen(centred), seen(target), None) / 5, logits
    )[0]
    errors = list[float]()
    for temperature in (10.0, 100.0, 1000.0):
        term = SoftTargets(temperature=temperature).begin(seen(logits), seen(wanted), TASK)
        soft = torch.autograd.grad(term(seen(logits), seen(wanted), None), logits)[0]
        errors.append(float((soft - regression).norm() / regression.norm()))
    assert errors[2] < 1e-2
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


def test_logit_regression_by_hand() -> None:
    ours, theirs = random(4, 3), random(4, 3, seed=1)
    by_hand = sum(float((a - b) ** 2) / 2 for a, b in zip(ours.flatten(), theirs.flatten(), strict=True)) / 4
    assert outputs(LogitRegression(), ours, theirs) == pytest.approx(by_hand)


def test_regression_of_nested_outputs() -> None:
    pairs = [(random(4, 2, 4), random(4, 2, 4, seed=2)), (random(4, 3, seed=1), random(4, 3, seed=3))]
    ours, theirs = ({"boxes": boxes, "n": (n,)} for boxes, n in zip(*pairs, strict=True))
    error = sum(float((a - b).square().sum()) for a, b in pairs) / sum(float(b.square().sum()) for _, b in pairs)
    assert outputs(Regression(), ours, theirs) == pytest.approx(error)
    cosines = list[float]()
    for a, b in pairs:
        x, y = a.numpy(), b.numpy()
        cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
        cosines.append(1 - float(cosine.mean()))
    assert outputs(Regression(error="cosine"), ours, theirs) == pytest.approx(sum(cosines) / 2)


def test_hints_of_equal_shape_need_no_regressor() -> None:
    ours, theirs = random(4, 3, 5, 5), random(4, 3, 5, 5, seed=1)
    assert layers(Hints(student=A, teacher=A), ours, theirs) == pytest.approx(float(np.mean((ours - theirs).numpy() ** 2) / 2))
    assert not list(Hints(student=A, teacher=A).begin(seen(a=ours), seen(a=theirs), TASK).parameters())


def test_hints_teach_the_student() -> None:
    student, teacher = seen(a=random(4, 3).requires_grad_()), seen(a=random(4, 3, seed=1))
    error = Hints(student=A, teacher=A).begin(student, teacher, TASK)(student, teacher, None)
    (gradient,) = torch.autograd.grad(error, [student.layers["a"]])
    torch.testing.assert_close(gradient, (student.layers["a"] - teacher.layers["a"]).detach() / 12)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ((6, 3), (6, 5)), ((6, 3, 8, 8), (6, 5, 4, 4)), ((6, 3, 4, 4), (6, 3, 6, 8)), ((6, 4, 3), (6, 4, 7)),
        ((6, 4, 3), (6, 9, 3)),
    ],
)  # fmt: skip
def test_regressors_fit_what_is_linear(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    student, teacher = seen(a=random(*ours)), seen(a=random(*theirs, seed=1))
    term = Hints(student=A, teacher=A).begin(student, teacher, TASK)
    regressor = term.get_submodule("regressors.0")
    given = regressor(student.layers["a"])
    assert given.shape == theirs
    assert float(term(student, Seen(None, {"a": given}), None).detach()) == 0
    assert bool(list(term.parameters())) == (ours[1:2] != theirs[1:2] or len(ours) == 3)


def test_resized_images_keep_their_means() -> None:
    ours = random(2, 3, 8, 8)
    wanted = ours.reshape(2, 3, 4, 2, 4, 2).mean((3, 5))
    assert layers(Hints(student=A, teacher=A), ours, wanted) == pytest.approx(0, abs=1e-20)


def test_no_regressor_fits() -> None:
    with pytest.raises(UsageError, match=r"term hints: .*\(4, 2, 3\).*\(4, 5, 6\)"):
        layers(Hints(student=A, teacher=A), random(4, 2, 3), random(4, 5, 6))


def test_attention_by_hand_and_up_to_scale() -> None:
    ours, theirs = random(3, 2, 4, 4), random(3, 5, 4, 4, seed=1)
    distances = list[float]()
    for n in range(3):
        q = [(x[n].numpy() ** 2).sum(0).ravel() for x in (ours, theirs)]
        distances.append(float(np.linalg.norm(q[0] / np.linalg.norm(q[0]) - q[1] / np.linalg.norm(q[1]))))
    assert layers(AttentionTransfer(student=A, teacher=A), ours, theirs) == pytest.approx(np.mean(distances) / 2)
    several = 3 * ours.repeat(1, 2, 1, 1)  # other channels that look at the same places
    assert layers(AttentionTransfer(student=A, teacher=A), several, ours) == pytest.approx(0, abs=1e-12)
    sequence = ours.flatten(2).transpose(1, 2)
    assert layers(AttentionTransfer(student=A, teacher=A), sequence, theirs.flatten(2).transpose(1, 2)) == pytest.approx(
        np.mean(distances) / 2
    )


def test_neurons_are_chosen_by_what_is_left_unexplained() -> None:
    """Greedily, each by least squares on those before."""
    units = random(40, 3) @ random(3, 7, seed=1) + 0.1 * random(40, 7, seed=2)
    centred, chosen = (units - units.mean(0)).numpy(), list[int]()
    for _ in range(4):
        basis = centred[:, chosen]
        fit = basis @ np.linalg.lstsq(basis, centred, rcond=None)[0] if chosen else 0 * centred
        left = ((centred - fit) ** 2).sum(0)
        left[chosen] = -1
        chosen.append(int(left.argmax()))
    assert informative(units, 4).tolist() == sorted(chosen)
    doubled = torch.cat([units[:, :2], units[:, :2]], 1)
    assert len({int(i) % 2 for i in informative(doubled, 2)}) == 2  # never a unit and its copy


def test_selected_neurons_by_hand() -> None:
    student, teacher = seen(a=random(8, 3)), seen(a=random(8, 4, 2, 2, seed=1))
    term = SelectedNeurons(share=0.5, student=A, teacher=A).begin(student, teacher, TASK)
    u = teacher.layers["a"].mean((2, 3))[:, term.get_buffer("chosen_0")]
    r = student.layers["a"] @ term.get_parameter("regressors.0.weight").T + term.get_parameter("regressors.0.bias")
    wanted = float(((u - r).square().sum() / (u - u.mean(0)).square().sum() / 2).detach())
    assert u.shape == (8, 2)
    assert float(term(student, teacher, None).detach()) == pytest.approx(wanted)


def relations(x: np.ndarray[Any, Any]) -> tuple[dict[Any, float], dict[Any, float]]:
    n = len(x)
    distances = {(i, j): float(np.linalg.norm(x[i] - x[j])) for i in range(n) for j in range(n) if i != j}
    mean = sum(distances.values()) / len(distances)
    angles = {
        (i, j, k): float((x[i] - x[j]) @ (x[k] - x[j])) / distances[i, j] / distances[k, j]
        for i in range(n) for j in range(n) for k in range(n) if len({i, j, k}) == 3
    }  # fmt: skip
    return {pair: distance / mean for pair, distance in distances.items()}, angles


def huber(difference: float) -> float:
    return difference**2 / 2 if abs(difference) <= 1 else abs(difference) - 0.5


def test_relational_by_loops() -> None:
    ours, theirs = random(5, 3), random(5, 4, seed=1)
    parts = [
        float(np.mean([huber(a[key] - b[key]) for key in a]))
        for a, b in zip(relations(ours.numpy()), relations(theirs.numpy()), strict=True)
    ]
    found = outputs(Relational(distance=2.0, angle=3.0), ours, theirs)
    assert found == pytest.approx(2 * parts[0] + 3 * parts[1])


def test_relational_ignores_rotation_translation_and_scale() -> None:
    ours, turn = random(7, 4), torch.linalg.qr(random(4, 4, seed=1))[0]
    assert outputs(Relational(), 2.5 * ours @ turn + 100, ours) == pytest.approx(0, abs=1e-16)
    assert outputs(Relational(), ours @ random(4, 4, seed=2), ours) > 1e-2


def test_relational_of_equal_examples_has_gradients() -> None:
    ours = torch.ones(4, 3, requires_grad=True)
    term = Relational().begin(seen(ours), seen(random(4, 3).float()), TASK)
    assert torch.isfinite(torch.autograd.grad(term(seen(ours), seen(random(4, 3).float()), None), ours)[0]).all()


def test_similarity_by_loops_and_its_invariance() -> None:
    ours, theirs = random(5, 2, 3), random(5, 4, seed=1)
    grams = list[np.ndarray[Any, Any]]()
    for x in (ours.reshape(5, -1).numpy(), theirs.numpy()):
        gram = np.array([[float(a @ b) for b in x] for a in x])
        grams.append(gram / np.linalg.norm(gram, axis=1, keepdims=True))
    assert outputs(Similarity(), ours, theirs) == pytest.approx(((grams[0] - grams[1]) ** 2).sum() / 25)
    turn = torch.linalg.qr(random(4, 4, seed=2))[0]
    assert outputs(Similarity(), theirs @ turn, theirs) == pytest.approx(0, abs=1e-20)


def test_contrastive_by_loops_and_lowest_when_pairs_match() -> None:
    term = Contrastive(width=None, temperature=0.5)
    ours, theirs = random(6, 4), random(6, 4, seed=1)
    x, y = (z.numpy() / np.linalg.norm(z.numpy(), axis=1, keepdims=True) for z in (ours, theirs))
    by_hand = np.mean([math.log(sum(math.exp(x[i] @ y[j] / 0.5) for j in range(6))) - x[i] @ y[i] / 0.5 for i in range(6)])
    assert outputs(term, ours, theirs) == pytest.approx(float(by_hand))
    matched = outputs(term, theirs, theirs)
    assert all(outputs(term, theirs.roll(shift, 0), theirs) > matched for shift in range(1, 6))
    learnt = Contrastive(width=3).begin(seen(random(6, 5)), seen(theirs), TASK)
    assert sum(p.numel() for p in learnt.parameters()) == (5 + 1) * 3 + (4 + 1) * 3


def test_pyramid_by_loops() -> None:
    ours, theirs = random(2, 3, 8, 8), random(2, 3, 8, 8, seed=1)
    total, weight = float(np.mean((ours - theirs).numpy() ** 2)), 1.0
    sums = 1.0
    for cells in (4, 2, 1):
        weight, size = weight / 2, 8 // cells
        means = [x.reshape(2, 3, cells, size, cells, size).mean((3, 5)).numpy() for x in (ours, theirs)]
        total, sums = total + weight * float(np.mean((means[0] - means[1]) ** 2)), sums + weight
    assert float(pyramid(ours, theirs)) == pytest.approx(total / sums)


def test_review_teaches_shallow_layers_by_the_deeper_ones() -> None:
    student = seen(a=random(4, 3, 8, 8).float().requires_grad_(), b=random(4, 6, 4, 4, seed=1).float().requires_grad_())
    teacher = seen(a=random(4, 5, 8, 8, seed=2).float(), b=random(4, 9, 4, 4, seed=3).float())
    term = Review(student=("a", "b"), teacher=("a", "b"), width=7).begin(student, teacher, TASK)
    only_shallow = pyramid(term.get_submodule("out.0")(torch.zeros(4, 7, 8, 8)), teacher.layers["a"])
    assert torch.isfinite(only_shallow)
    gradients = torch.autograd.grad(term(student, teacher, None), list(student.layers.values()))
    assert all(float(gradient.norm()) > 0 for gradient in gradients)
    with pytest.raises(UsageError, match="expected feature maps"):
        layers(Review(student=A, teacher=A), random(4, 3), random(4, 3))


def test_sum_weighs_its_terms() -> None:
    ours, theirs, targets = random(6, 3), random(6, 3, seed=1), torch.tensor([0, 1, 2, 0, 1, 2])
    term = SumOfTerms(terms=(Labels(weight=0.1), SoftTargets(weight=0.9, temperature=2.0), Regression(weight=0.0)))
    wanted = 0.1 * float(functional.cross_entropy(ours, targets)) + 0.9 * outputs(SoftTargets(temperature=2.0), ours, theirs)
    assert loss(term, seen(ours), seen(theirs), targets) == pytest.approx(wanted)


def test_globs_pick_in_their_order() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), nn.ReLU())
    assert paths(model) == ["0", "1", "1.0", "1.1", "2"]
    assert pick(paths(model), ("1.*", "[02]", "1*")) == ["1.0", "1.1", "0", "2", "1"]


def test_observer_sees_layers_and_leaves_no_hook() -> None:
    model, inputs = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)), torch.randn(4, 3)
    observer = Observer(model, ["1", "0"])
    result = observer.seen(model(inputs))
    assert list(result.layers) == ["0", "1"]
    assert torch.equal(result.layers["1"], model[0](inputs).relu())
    observer.close()
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(DataError, match="layers 0, 1 gave no float tensor"):
        observer.seen(model(inputs))


@pytest.mark.parametrize(
    ("term", "words"),
    [
        (Hints(student=("9",), teacher=("1",)), "student '9' matches no layer of the student. It has: 0, 1, 2"),
        (Hints(student=("1",), teacher=("nine*",)), "teacher 'nine.*' matches no layer of the teacher"),
        (Hints(student=("[03]",), teacher=("0",)), r"2 layers of the student \(0, 3\) and 1 of the teacher \(0\)"),
    ],
)
def test_globs_that_do_not_fit(term: Term, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Recover(epochs=1, term=term).apply(trained())


def teaching(term: Term, student: nn.Module | None = None) -> Job:
    """A narrower student of the trained net."""
    torch.manual_seed(3)
    student = student or nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    return Recover(epochs=2, learning_rate=1e-2, term=term).apply(replace(trained(), model=student))


MIDDLE, LATE = ("2",), ("5",)  # of the student, of its teacher
EVERY = (
    Labels(), SoftTargets(), LogitRegression(), Regression(), Relational(),
    Hints(student=MIDDLE, teacher=LATE), SelectedNeurons(student=MIDDLE, teacher=LATE),
    Relational(student=MIDDLE, teacher=LATE), Similarity(student=MIDDLE, teacher=LATE),
    Contrastive(student=MIDDLE, teacher=LATE, width=8),
    SumOfTerms(terms=(Labels(), SoftTargets(weight=0.5), Hints(student=MIDDLE, teacher=LATE))),
)  # fmt: skip


@pytest.mark.parametrize("term", EVERY, ids=lambda term: term.term)
def test_every_term_trains_a_narrower_student(term: Term) -> None:
    job = teaching(term)
    assert job.epochs[1].loss < job.epochs[0].loss
    assert [name for name, _ in job.model.named_parameters()] == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "3.weight",
        "3.bias",
    ]
    assert not any(module._forward_hooks for module in job.model.modules())
    assert_equal(job.model.state_dict(), teaching(term).model.state_dict())  # regressors come from the seed


def test_a_term_works_inside_a_training_method() -> None:
    term = SumOfTerms(terms=(Labels(), Hints(student=("2",), teacher=("2",))))
    recover = Recover(epochs=2, learning_rate=1e-2, term=term)
    after = BinaryConnect(recover=recover).apply(trained())
    assert len(after.epochs) == 2
    assert not any(module._forward_hooks for module in after.model.modules())


class Stopped(Exception):  # noqa: N818
    pass


def test_a_resumed_student_ends_with_the_same_bits(tmp_path: Path) -> None:
    """The regressors are in the checkpoint."""
    passes = [0]

    class Train:
        stops = True

        def __iter__(self) -> Any:
            passes[0] += 1
            for batch in trained().task.train or ():
                if self.stops and passes[0] == 4:  # the first pass is the probe's
                    raise Stopped
                yield batch

    torch.manual_seed(3)
    student = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    recover = Recover(epochs=4, learning_rate=1e-2, term=SumOfTerms(terms=(Labels(), Hints(student=MIDDLE, teacher=LATE))))
    train = Train()
    job = replace(trained(), model=student, folder=tmp_path, task=replace(trained().task, train=train))
    with pytest.raises(Stopped):
        recover.apply(job)
    train.stops = False
    assert (tmp_path / "training.pt").exists()
    resumed = recover.apply(job)
    (tmp_path / "training.pt").unlink()
    assert_equal(resumed.model.state_dict(), recover.apply(job).model.state_dict())


def test_a_teacher_of_another_architecture_is_reported(tmp_path: Path) -> None:
    teacher = trained().model
    torch.manual_seed(3)
    student = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    recover = Recover(epochs=1, term=SoftTargets())
    result = compress(student, trained().task, recover, teacher=teacher, output=tmp_path / "run", engine=None)
    report = result.report
    assert report.dense.parameters == sum(p.numel() for p in teacher.parameters())
    assert report.compressed.parameters == sum(p.numel() for p in student.parameters())
    assert [layer.site for layer in report.layers] == ["0.weight", "2.weight"]
    assert report.compressed.bytes == (tmp_path / "run" / "model.kogata").stat().st_size


def test_outputs_that_do_not_fit() -> None:
    student = nn.Sequential(nn.Linear(12, 4))
    for term in (SoftTargets(), LogitRegression(), Regression()):
        with pytest.raises(DataError, match=r"\(32, 4\) and the teacher \(32, 3\)"):
            teaching(term, student)
    inputs, _ = examples()
    unlabelled = Task(calibration=[inputs[:8]], train=[inputs[:8]])
    with pytest.raises(DataError, match="needs a loss"):
        Recover(epochs=1, term=Labels()).apply(prepare(network(), unlabelled))
    with pytest.raises(DataError, match="has no targets"):
        Recover(epochs=1, term=Labels()).apply(prepare(network(), replace(unlabelled, loss=functional.cross_entropy)))
    with pytest.raises(DataError, match="no training data"):
        Recover(epochs=1, term=SoftTargets()).apply(prepare(network(), Task(calibration=[inputs[:8]])))


def test_a_loss_that_is_not_finite() -> None:
    task = replace(trained().task, loss=lambda output, _: output.sum() * math.inf)
    with pytest.raises(DataError, match=r"term labels is .*on the first batch"):
        Recover(epochs=1, term=Labels()).apply(replace(trained(), task=task))


@pytest.mark.parametrize("term", EVERY, ids=lambda term: term.term)
def test_terms_read_back_from_recipes(term: Term) -> None:
    recover = Recover(epochs=1, term=term)
    assert parse(yaml.safe_dump({"steps": [json.loads(json.dumps(recover.settings()))]}), "t").method.steps() == (recover,)


def test_recipes_say_terms_shortly() -> None:
    terms = "[{weight: 0.9, term: soft-targets}, labels, {term: hints, student: a, teacher: [b]}]"
    wanted = SumOfTerms(terms=(SoftTargets(weight=0.9), Labels(), Hints(student=("a",), teacher=("b",))))
    assert parse(f"steps: [{{method: recover, epochs: 1, term: {terms}}}]", "t").method.steps() == (
        Recover(epochs=1, term=wanted),
    )
    assert {term.term for term in TERMS} >= {term.term for term in EVERY}


@pytest.mark.parametrize(
    ("term", "words"),
    [
        ("{term: soft-target}", r"term: term 'soft-target' is unknown; did you mean 'soft-targets'\?"),
        ("{term: soft-targets, temp: 4}", r"term \(soft-targets\): the key 'temp' .*temperature"),
        ("{term: soft-targets, temperature: hot}", "temperature is 'hot'"),
        ("{term: soft-targets, temperature: 0}", "temperature is 0.0; expected more than 0"),
        ("{term: regression, error: l1}", "'relative' or 'cosine'"),
        ("[labels, {weight: -1, term: labels}]", "weight is -1.0; expected 0 or more"),
        ("[]", "terms is empty"), ("{term: sum, terms: 3}", "expected a list of terms"), ("3", "expected a term such as"),
        ("hints", "give 'student' and 'teacher'"), ("{term: hints, student: a}", "belong together"),
    ],
)  # fmt: skip
def test_recipes_name_what_is_wrong(term: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(f"steps: [{{method: recover, epochs: 1, term: {term}}}]", "t")
