"""The program, in a process of its own, and one compressed run that many tests look at."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.warm import Warm

SOURCE = Path(__file__).parents[2] / "src"
RECIPE = """
name: tiny
targets: {size: 1/5}
steps:
  - {method: magnitude, sparsity: 0.8}
  - {method: recover, epochs: 2}
  - {method: k-means, clusters: 8}
"""


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, str]]:
    """How to start the real program in a fresh interpreter: the words before the arguments, and the environment."""
    environment = {name: value for name, value in os.environ.items() if name != "KOGATA_DATA"}
    environment |= {
        "PYTHONPATH": str(SOURCE), "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")), "COLUMNS": "80",
        "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1",
    }  # fmt: skip
    return [sys.executable, "-m", "kogata"], environment


@pytest.fixture(scope="session")
def warm(command: tuple[list[str], dict[str, str]]) -> Iterator[Warm]:
    """The server whose children run commands."""
    server = Warm(command[1])
    yield server
    server.close()


@pytest.fixture(scope="session")
def kogata(
    warm: Warm, command: tuple[list[str], dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the program, with ``columns`` of a terminal and the packages in the folder ``library``.

    It must end with the exit code ``code`` and show a traceback only where that is expected.
    """
    folder, streams = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("streams")

    def run(*arguments: object, code: int = 0, columns: int = 80, library: Path = SOURCE) -> subprocess.CompletedProcess[str]:
        environment = command[1] | {"COLUMNS": str(columns), "PYTHONPATH": f"{SOURCE}{os.pathsep}{library}"}
        done = warm.run([*map(str, arguments)], environment, folder, streams)
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of three steps that takes a second."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished(
    kogata: Callable[..., subprocess.CompletedProcess[str]], recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The folder of a finished run, and what the program printed."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    return folder, kogata("compress", "digits-mlp", "--recipe", recipe, "-o", folder, "--size", "1/10").stdout
