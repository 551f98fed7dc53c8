"""A row of exact zeros: in the simplest form that holds it, through training and through files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import kogata
from kogata.forms import Codebook, Dense, Form, Masked, Product, Role, ZeroRow
from kogata.forms.zero_row import with_zero_row
from kogata.methods import KMeans, Recover
from kogata.testing.comparisons import weights
from tests.forms.test_forms import rebuilt

TABLE = torch.tensor([0.5, -1.0, 2.0])


def shared() -> Codebook:
    return Codebook.of(torch.randint(0, 3, (6, 4), dtype=torch.uint8), TABLE.clone())


@pytest.mark.parametrize(
    ("form", "described"),
    [
        (shared(), "zero-row(codebook)"),
        (Dense(torch.randn(6, 4), Role.MATRIX), "dense"),
        (Product.of("or,ri->oi", [torch.randn(6, 2), torch.randn(2, 4)], (6, 4)), "product"),
        (Product("or,ri->oi", [shared(), Dense(torch.randn(4, 5), Role.MATRIX)], (6, 5)), "product(zero-row(codebook))"),
        (Product.of("ar,br->ab", [torch.randn(6, 2), torch.randn(4, 2)], (6, 4)), "zero-row(product)"),
    ],
)
def test_only_the_row_becomes_zero(form: Form, described: str) -> None:
    before = form.dense().detach()
    made = with_zero_row(form, 2)
    assert made.describe() == described
    assert torch.equal(made.dense()[2], torch.zeros_like(before[2]))
    others = [0, 1, 3, 4, 5]
    assert torch.equal(made.dense()[others], before[others])
    assert with_zero_row(made, 2).describe() == described, "a second time changes nothing"


def test_a_mask_that_prunes_the_row_stays_as_it_is() -> None:
    weight = torch.randn(5, 3)
    keep = torch.ones(5, 3, dtype=torch.bool)
    keep[4] = False
    form = Masked.of(weight, keep)
    assert with_zero_row(form, 4) is form
    assert with_zero_row(form, 0).describe() == "zero-row(masked)"


def test_rebuilt_and_refused() -> None:
    form = ZeroRow(shared(), 5)
    assert torch.equal(rebuilt(form).dense(), form.dense())
    for row in (6, -1, True, None, "0"):
        with pytest.raises(ValueError, match="zeros at row"):
            ZeroRow.restore({"row": row}, {}, {"part": shared()})


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_padding_stays_zero_when_centroids_are_trained_and_stored(kind: type[nn.Embedding], tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = kind(120, 16, padding_idx=7), nn.Linear(16, 3)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            found = self.words(tokens)
            return self.out(found.mean(1) if found.ndim == 3 else found)

    torch.manual_seed(0)
    tokens, targets = torch.randint(0, 120, (32, 9)), torch.randint(0, 3, (32,))
    task = kogata.Task(calibration=[tokens], train=[(tokens, targets)], loss=functional.cross_entropy)
    method = kogata.chain(KMeans(clusters=3), Recover(epochs=3, learning_rate=0.1))
    result = kogata.compress(Net(), task, method, engine=None, output=tmp_path / "run")
    for model in (result.model, kogata.load(result.path, into=Net())):
        assert not weights(model)["words.weight"][7].any()


def test_a_padding_row_with_numbers_of_its_own_keeps_them() -> None:
    layer = nn.Embedding.from_pretrained(torch.randn(100, 16), freeze=False, padding_idx=3)
    job = KMeans(clusters=4).apply(kogata.prepare(layer, kogata.Task(calibration=[torch.randint(0, 100, (4, 5))])))
    assert weights(job.model)["weight"][3].any()
