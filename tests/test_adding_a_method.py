"""docs/adding_a_method.md from outside the package: its files are written to an empty folder and its commands run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```\w+\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with the files of the page."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def done(words: list[str], package: Path, cwd: Path) -> str:
    """Run a program with the package importable; its output."""
    path = os.pathsep.join([str(package), *sys.path])
    ran = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_its_files_are_those_it_speaks_of() -> None:
    assert set(FILES) == {"my_powers.py", "test_my_powers.py", "my_powers.yaml", "use_it.py"}


def test_its_tests_pass(package: Path) -> None:
    out = done(["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_powers.py"], package, package)
    assert re.search(r"\d{2,} passed", out)


def test_its_recipe_compresses_and_its_file_opens(package: Path) -> None:
    out = package / "runs"
    done(
        ["-m", "kogata", "compress", "examples/my_task.py", "--recipe", str(package / "my_powers.yaml"), "-o", str(out)],
        package, ROOT,
    )  # fmt: skip
    assert done(["use_it.py", str(out / "model.kogata")], package, package) == "OnnxSession\n"


def test_its_oracle_can_fail(package: Path) -> None:
    """Rounding down instead of to the nearest is found."""
    source = package / "my_powers.py"
    broken = FILES["my_powers.py"].replace("(values[:-1] + values[1:]) / 2", "values[:-1]")
    assert broken != FILES["my_powers.py"]
    source.write_text(broken, encoding="utf-8")
    with pytest.raises(AssertionError, match="test_every_weight_takes_the_nearest_value"):
        done(["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_powers.py", "-k", "nearest"], package, package)
