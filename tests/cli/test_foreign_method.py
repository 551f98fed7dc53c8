"""A method of another package works through the program like one that comes with Kogata."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

Run = Callable[..., subprocess.CompletedProcess[str]]

METHOD = '''
from dataclasses import dataclass
from typing import Annotated, final

from kogata.forms import Dense, Role
from kogata.forms.masked import Masked
from kogata.job import Kind
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.settings import Range


@final
@dataclass(frozen=True, kw_only=True)
class EveryOther(WeightMethod):
    """Keep one of ``stride`` columns."""

    stride: Annotated[int, Range(ge=2)] = 2

    ABOUT = About(
        name="every-other", family="pruning", summary="keeps some columns", paper="none",
        accepts=frozenset({Role.MATRIX}), leaves=frozenset({Role.VALUES}),
    )

    def encode(self, weight, site, stats):
        mask = weight.new_zeros(weight.shape).bool()
        mask[:, :: self.stride] = True
        return Masked.of(weight, mask)
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "lib" / "their_package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("", encoding="utf-8")
    (folder / "columns.py").write_text(METHOD, encoding="utf-8")
    return folder.parent


def test_a_foreign_method_compresses(
    command: tuple[list[str], dict[str, str]], kogata: Run, package: Path, tmp_path: Path
) -> None:
    words, environment = command
    environment = environment | {"PYTHONPATH": f"{environment['PYTHONPATH']}:{package}"}
    recipe, out = tmp_path / "mine.yaml", tmp_path / "run"
    recipe.write_text("steps: [{method: 'their_package.columns:EveryOther'}, {method: half}]", encoding="utf-8")
    arguments = ("compress", "digits-mlp", "--engine", "none", "-o")
    shown = kogata(*arguments, out, "--recipe", recipe, "--dry-run", library=package).stdout
    assert yaml.safe_load(shown)["steps"][0] == {"method": "their_package.columns:EveryOther", "stride": 2}
    assert "1. every-other: fc1.weight" in shown

    # the real program finds the package by PYTHONPATH too
    whole = [*words, *map(str, (*arguments, out, "--recipe", recipe))]
    done = subprocess.run(whole, env=environment, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    assert "every-other" in done.stdout
    again = kogata(*arguments, tmp_path / "again", "--recipe", out / "recipe.yaml", library=package)
    assert again.stderr.count("error") == 0
    assert (tmp_path / "again" / "model.kogata").read_bytes() == (out / "model.kogata").read_bytes()
    assert "masked" in kogata("inspect", out / "model.kogata").stdout

    recipe.write_text("steps: [{method: 'their_package.columns:EveryOther', stride: 1}]", encoding="utf-8")
    message = kogata(*arguments, out, "--recipe", recipe, "--dry-run", code=2, library=package).stderr
    assert "step 1 (their_package.columns:EveryOther): stride is 1; expected 2 or more." in message


def test_a_package_that_is_not_there_is_told(kogata: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("steps: [{method: 'their_package.columns:EveryOther'}]", encoding="utf-8")
    done = kogata("compress", "digits-mlp", "--recipe", recipe, "-o", tmp_path / "run", code=2)
    assert "No module named 'their_package'. Install its package, or name its folder in PYTHONPATH." in done.stderr
