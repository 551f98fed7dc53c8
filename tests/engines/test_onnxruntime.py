"""A graph on which ONNX Runtime crashes ends in a reason, not in the end of the process."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import kogata
from kogata import Task
from kogata.engines import DEFAULT_ENGINE
from kogata.methods import RoundToNearest


class Bag(nn.Module):
    """ONNX Runtime 1.32 crashes on the loop that the exporter makes of a bag of indices."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.EmbeddingBag(500, 32), nn.Linear(32, 4)

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.words(text))


def test_a_bag_of_indices_is_compressed_and_reported(tmp_path: Path) -> None:
    task = Task(calibration=[torch.randint(0, 500, (8, 10))])
    result = kogata.compress(Bag(), task, RoundToNearest(bits=8), output=tmp_path / "run", engine=DEFAULT_ENGINE)
    forms = [name for name in ("words.weight", "head.weight") if name in result.model.state_dict()]
    assert not forms  # both are held by forms
    assert result.report.compressed.bytes < 0.35 * result.report.dense.bytes
    assert any("crash" in note for note in result.report.notes) or result.report.engine == "onnxruntime"
