"""Which batches have rows that are samples, and what is measured of those that have none."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import kogata
from kogata import Task
from kogata.calibration.costs import macs
from kogata.calibration.prepare import prepare
from kogata.engines import Eager
from kogata.methods import OBD, RoundToNearest
from kogata.network.batch import take
from kogata.network.rows import first_rows


class Graph(nn.Module):
    """One step of message passing: nodes and edges have axes of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]).relu())


class StepsFirst(nn.Module):
    """Attention over a first axis of steps; samples lie along the second."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.last = nn.MultiheadAttention(8, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.last(self.mix(x, x, x, attn_mask=mask, need_weights=False)[0])


class Images(nn.Module):
    """A list of images of different sizes, as detectors take them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        return [self.last(self.conv(image[None]).relu().mean((2, 3))) for image in images]


class Signal(nn.Module):
    """One signal, channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv1d(4, 8, 5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x).relu().mean(-1))


class Recurrent(nn.Module):
    """Outputs whose samples lie along the first axis, and states whose samples lie along the second."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(8, 6, num_layers=2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        steps, states = self.lstm(x)
        return self.last(steps).flatten(0, 1), states


WITHOUT_ROWS: list[tuple[nn.Module, Any]] = [
    (Graph(), {"x": torch.randn(10, 8), "edges": torch.randint(0, 10, (2, 30))}),
    (StepsFirst(), {"x": torch.randn(6, 4, 8), "mask": nn.Transformer.generate_square_subsequent_mask(6)}),
    (StepsFirst(), {"x": torch.randn(6, 4, 8)}),
    (Images(), {"images": [torch.randn(3, 9, 8), torch.randn(3, 7, 8)]}),
    (Signal(), torch.randn(4, 30)),
]


@pytest.mark.parametrize(("model", "inputs"), WITHOUT_ROWS, ids=lambda value: type(value).__name__)
def test_batches_without_rows_are_measured_whole(model: nn.Module, inputs: Any) -> None:
    model = model.eval()
    assert first_rows(model, inputs) is inputs
    report = kogata.compress(model, Task(calibration=[inputs]), RoundToNearest(bits=8), engine=Eager()).report
    assert report.compressed.latency_ms is not None
    assert any("whole first calibration batch" in note for note in report.notes)


def test_costs_of_a_batch_without_rows_are_those_of_all_of_it() -> None:
    model, inputs = WITHOUT_ROWS[0]
    found = macs(model, inputs)
    assert found == {"first.weight": 10 * 8 * 12, "last.weight": 10 * 12 * 3}


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (Recurrent(), torch.randn(5, 7, 8)),
        (nn.Linear(8, 2).double(), torch.randn(5, 8).double()),
        (nn.MultiheadAttention(8, 2, batch_first=True), tuple(torch.randn(3, 5, 4, 8))),
        (nn.Bilinear(4, 5, 6), (torch.randn(9, 4), torch.randn(9, 5))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_batches_of_samples_give_their_first_rows(model: nn.Module, inputs: Any) -> None:
    found, wanted = first_rows(model.eval(), inputs, 2), take(inputs, 2)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert found is not inputs


def test_a_batch_whose_samples_are_seen_together_is_taken_whole() -> None:
    class Centered(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input - input.mean(0))

    inputs = torch.randn(5, 8)
    assert first_rows(Centered(8, 2), inputs) is inputs


def test_a_graph_is_one_sample_of_the_gradients(caplog: pytest.LogCaptureFixture) -> None:
    model, inputs = WITHOUT_ROWS[0]
    job = prepare(model, Task(calibration=[(inputs, torch.randint(0, 3, (10,)))], loss=nn.functional.cross_entropy))
    pruned = OBD(sparsity=0.5).apply(job).model
    assert "gradients are those of whole batches" in caplog.text
    assert int((cast("Tensor", pruned.get_submodule("first").weight) == 0).sum()) > 0
