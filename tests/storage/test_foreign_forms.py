"""Forms of other packages: saved like any other, loaded when their class is given, never imported by what a file says."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import kogata
from kogata.cli import app
from kogata.coding.plane import Plane
from kogata.engines import OnnxRuntime
from kogata.errors import FileFormatError, UsageError
from kogata.forms import Dense, Form, Masked, Role
from kogata.job import Step
from kogata.methods import RoundToNearest
from kogata.network import surgery
from kogata.network.sites import form_at, sites_of
from kogata.storage import hub
from kogata.storage.folder import Folder
from kogata.storage.load import load
from kogata.storage.read import read_file
from kogata.storage.write import pack
from kogata.testing.comparisons import assert_near, assert_untouched, snapshot


class Steps(Form):
    """Entry i is ``count[i]`` times one trainable step."""

    TAG = "acme.steps"

    def __init__(self, count: Tensor, step: Form) -> None:
        super().__init__()
        self.shape = count.shape
        self.register_buffer("count", count)
        self.step = step

    def dense(self) -> Tensor:
        return self.get_buffer("count") * self.step.dense()

    def planes(self) -> dict[str, Plane]:
        return {"count": Plane.integers(self.get_buffer("count").numpy())}

    def header(self) -> dict[str, Any]:
        return {"about": "steps", "limits": [-3, 3], "signed": True}

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        if header != {"about": "steps", "limits": [-3, 3], "signed": True}:
            raise ValueError(f"header {header}")
        return cls(torch.from_numpy(planes["count"]), parts["step"])


class Namesake(Steps):
    """Another form under the same tag, as a subclass has that does not declare its own."""


class Tagless(Steps):
    TAG = ""


class Thief(Steps):
    TAG = "masked"


def with_form(form: type[Steps]) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    count = torch.randint(-3, 4, (6, 8), dtype=torch.int8)
    mask = Masked.of(torch.randn(4, 6), torch.rand(4, 6) < 0.5)
    mask.values = form(torch.randint(-3, 4, mask.values.shape, dtype=torch.int8), Dense(torch.tensor([0.3]), Role.SCALE))
    first, last = (site for site in sites_of(net) if site.role is Role.MATRIX)
    surgery.attach(net, first, form(count, Dense(torch.tensor([0.1]), Role.SCALE)))
    surgery.attach(net, last, mask)
    return net


@pytest.fixture
def path(tmp_path: Path) -> Path:
    net, inputs = with_form(Steps), torch.randn(2, 8)
    (tmp_path / hub.FILE).write_bytes(pack(net, OnnxRuntime().graph(net, inputs)).data)
    return tmp_path / hub.FILE


def test_it_loads_everywhere_when_its_class_is_given(path: Path) -> None:
    net, inputs = with_form(Steps), torch.randn(2, 8)
    for loaded in (
        load(path, into=nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)), forms=(Steps,)),
        hub.from_pretrained(path.parent, nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)), forms=[Steps]),
    ):
        assert torch.equal(loaded(inputs), net(inputs))
        assert isinstance(form_at(loaded, sites_of(loaded)[1]), Steps)
        assert pack(loaded).data == pack(net).data
    assert {form.describe() for form in read_file(path, forms=(Steps,)).forms.values()} == {
        "dense", "acme.steps", "masked(acme.steps)",
    }  # fmt: skip
    assert_near(kogata.open(path, forms=(Steps,))(inputs), net(inputs), 1e-5)
    assert_near(kogata.run(path, inputs, forms=(Steps,)), net(inputs), 1e-5)


def test_an_unknown_form_says_whose_it_is_and_how_to_pass_it(path: Path) -> None:
    into = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    before = snapshot(into)
    with pytest.raises(FileFormatError) as caught:
        load(path, into=into)
    assert_untouched(into, before)
    for part in (str(path), "0.weight", "'acme.steps'", f"'{__name__}'", "'Steps'", "load(..., forms=(Steps,))"):
        assert part in str(caught.value)


def test_what_a_file_names_is_never_imported(tmp_path: Path) -> None:
    module = "antigravity"  # importing it would be noticed
    sys.modules.pop(module, None)
    data = pack(with_form(type("Fly", (Steps,), {"TAG": "acme.fly", "__module__": module}))).data
    (tmp_path / "m.kogata").write_bytes(data)
    with pytest.raises(FileFormatError, match="'Fly' of the module 'antigravity'"):
        read_file(tmp_path / "m.kogata")
    assert module not in sys.modules


@pytest.mark.parametrize(("form", "says"), [(Tagless, "has no TAG"), (Thief, "share the TAG 'masked'")])
def test_a_form_without_a_tag_of_its_own_is_not_stored(form: type[Steps], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        pack(with_form(form))


def test_two_classes_of_one_tag_are_not_stored() -> None:
    net = with_form(Steps)
    site = sites_of(net)[1]
    other = form_at(with_form(Namesake), site)
    surgery.attach(net, site, other)
    with pytest.raises(UsageError, match="share the TAG"):
        pack(net)


@pytest.mark.parametrize("forms", [(Tagless,), (Thief,), (Steps, Namesake)])
def test_a_class_without_a_tag_of_its_own_is_not_taken(forms: tuple[type[Form], ...], path: Path) -> None:
    with pytest.raises(UsageError, match="has the TAG"):
        read_file(path, forms=forms)


def test_commands_take_it_by_name(path: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    named = ["--form", f"{__name__}:Steps"]
    shown = CliRunner().invoke(app, ["inspect", str(path), "--json", *named])
    assert shown.exit_code == 0, shown.output
    assert "steps" in json.loads(shown.stdout)["layers"][0]["form"]
    assert CliRunner().invoke(app, ["unpack", str(path), "-o", str(weights), *named]).exit_code == 0
    assert weights.exists()
    with pytest.raises(FileFormatError, match=rf"--form {__name__}:Steps"):
        CliRunner().invoke(app, ["inspect", str(path)], catch_exceptions=False)
    with pytest.raises(UsageError, match="expected a subclass of"):
        CliRunner().invoke(app, ["inspect", str(path), "--form", "torch.nn:Linear"], catch_exceptions=False)


@pytest.mark.parametrize("wrong", ["acme:Steps", nn.Linear, RoundToNearest(bits=4)])
def test_what_is_no_form_is_refused(wrong: Any, path: Path) -> None:
    with pytest.raises(UsageError, match="is no form; expected classes that extend"):
        read_file(path, forms=(wrong,))


def test_the_whole_flow_takes_it(tmp_path: Path) -> None:
    """What compress() writes it reads again, whatever forms its methods leave."""
    from kogata.methods.base.compose import only

    task = kogata.Task(calibration=[torch.randn(4, 8)])
    result = kogata.compress(
        with_form(Steps), task, only(RoundToNearest(bits=8), kogata.Where(vectors=True)), output=tmp_path / "o"
    )
    assert result.report.compressed.bytes == (tmp_path / "o" / "model.kogata").stat().st_size


def test_a_checkpoint_gives_it_back(tmp_path: Path) -> None:
    """An interrupted run finds the class among those that its recipe has imported."""
    job = kogata.prepare(with_form(Steps), kogata.Task(calibration=[torch.randn(4, 8)]))
    folder = Folder(tmp_path)
    folder.begin({}, [{}], job, resume=False)
    folder.save(job, [Step(name="steps", settings={}, seconds=0.0, bits_before=2.0, bits_after=1.0, loss=None)])
    restored, steps = folder.restore(job)
    assert [step.name for step in steps] == ["steps"]
    assert pack(restored.model).data == pack(job.model).data
