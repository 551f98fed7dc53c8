"""Extra state of modules: written without pickle, read by the independent reader, put back, or named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import kogata
from kogata.errors import FileFormatError
from kogata.methods import RoundToNearest
from kogata.storage.extra import decoded, encoded, extra_states
from tests.storage.reader import File


class Scaled(nn.Linear):
    """A linear layer that multiplies by a number which is no tensor of the model."""

    state: Any = 1.0

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * (self.state if isinstance(self.state, float) else 1.0)

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        if state == "wrong":
            raise ValueError("this is no scale")
        self.state = state


def net(first: Any, last: Any = None) -> nn.Sequential:
    made = nn.Sequential(Scaled(16, 16), nn.ReLU(), Scaled(16, 4))
    made[0].state, made[2].state = first, last
    return made


def scaled(model: nn.Module, name: str) -> Any:
    layer = model.get_submodule(name)
    assert isinstance(layer, Scaled)
    return layer.state


def test_a_scale_is_in_the_file(tmp_path: Path) -> None:
    x = torch.randn(8, 16)
    result = kogata.compress(
        net(3.0), kogata.Task(calibration=[x]), RoundToNearest(bits=8), engine=None, output=tmp_path / "run"
    )
    assert torch.equal(kogata.load(result.path, into=net(1.0))(x), result.model(x))
    assert not any("extra state" in note for note in result.report.notes)
    assert File(result.path.read_bytes()).extra == {"0": 3.0, "2": None}


def test_nested_values_with_tensors(tmp_path: Path) -> None:
    history: list[Any] = [torch.rand(5), (1, True, None, "text", -0.0, math.inf)]
    values: dict[Any, Any] = {"history": history, "half": torch.rand(2, 3).bfloat16(), 7: torch.arange(3)}
    kogata.save(net(values, torch.tensor(2.5, dtype=torch.float64)), tmp_path / "net.kogata")
    loaded = kogata.load(tmp_path / "net.kogata", into=net(None))
    found = scaled(loaded, "0")
    assert list(found) == ["history", "half", 7]
    assert torch.equal(found["history"][0], history[0])
    assert repr(found["history"][1]) == repr(history[1])
    assert found["half"].dtype == torch.bfloat16
    assert torch.equal(found["half"], values["half"])
    assert torch.equal(found[7], values[7])
    assert scaled(loaded, "2").dtype == torch.float64
    read = File((tmp_path / "net.kogata").read_bytes()).extra["0"]
    assert read["history"][1] == history[1]
    assert torch.equal(torch.from_numpy(read["history"][0]), history[0])


JSON = st.recursive(
    st.none() | st.booleans() | st.text() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text() | st.integers(0, 9), part, max_size=3),
    max_leaves=6,
)


@given(JSON)
@settings(max_examples=60)
def test_plain_values_come_back(value: Any) -> None:
    try:
        node = encoded(value, lambda tensor: [])
    except ValueError:
        return  # nested too deep
    assert repr(decoded(node, lambda dtype, plane: torch.zeros(()))) == repr(value)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (b"\x80\x04", "bytes"), (torch.zeros(4, dtype=torch.uint8), "a tensor of torch.uint8"), (print, "builtin_function"),
        (2**53, "int"), ({"deep": [object()]}, "object"),
    ],
)  # fmt: skip
def test_what_would_need_pickle_is_named(value: Any, named: str, tmp_path: Path) -> None:
    model, x = net(2.0, value), torch.randn(8, 16)
    assert named in extra_states(model)[1]["2"]
    result = kogata.compress(model, kogata.Task(calibration=[x]), RoundToNearest(bits=8), engine=None, output=tmp_path / "run")
    assert any(f"of 2 is not in the file: it holds {named}" in note for note in result.report.notes)
    assert scaled(kogata.load(result.path, into=net(1.0, "kept")), "2") == "kept"


def test_a_model_that_cannot_take_it_is_unchanged(tmp_path: Path) -> None:
    kogata.save(net(3.0, "wrong"), tmp_path / "net.kogata")
    into = net(1.0, 5.0)
    before = into.get_parameter("0.weight").clone()
    with pytest.raises(FileFormatError, match="the extra state of 2 cannot be set: this is no scale"):
        kogata.load(tmp_path / "net.kogata", into=into)
    assert (scaled(into, "0"), scaled(into, "2")) == (1.0, 5.0)
    assert torch.equal(into.get_parameter("0.weight"), before)
    plain = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    with pytest.raises(FileFormatError, match="the extra state of 0 cannot be set: it takes none"):
        kogata.load(tmp_path / "net.kogata", into=plain)


@pytest.mark.parametrize(
    "node", [["float", 3], ["float", "three"], ["set", []], ["dict", [1]], ["tensor", "uint8", []], ["list", 3], {}]
)
def test_damaged_values_are_refused(node: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        decoded(node, lambda dtype, plane: torch.zeros(()))
