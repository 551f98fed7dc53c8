"""What must come at once: help, version, completion."""

import re
import subprocess
import time

import pytest

from kogata.cli.options import RECIPES, TASKS, EngineName
from kogata.engines import ENGINES
from kogata.recipes.recipe import built_in
from kogata.tasks.builtin import BUILTIN_TASKS

Command = tuple[list[str], dict[str, str]]


def output(command: Command, *arguments: str, **environment: str) -> str:
    """What the program prints."""
    words, inherited = command
    done = subprocess.run(
        [*words, *arguments], env=inherited | environment, capture_output=True, encoding="utf-8", timeout=60, check=True
    )
    return done.stdout


def test_help_comes_within_half_a_second(command: Command) -> None:
    shown, seconds = "", list[float]()
    for _ in range(10):  # the best of ten: other programs may keep the machine busy
        started = time.perf_counter()
        shown = output(command, "--help")
        seconds.append(time.perf_counter() - started)
        if seconds[-1] < 0.5:
            break
    assert min(seconds) < 0.5
    assert all(verb in shown for verb in ("methods", "inspect", "compress", "bench", "report", "unpack"))


def test_help_of_compress_names_tasks_and_recipes(command: Command) -> None:
    shown = re.sub(r"[\s│]", "", output(command, "compress", "--help"))  # names are wrapped within the frame
    assert all(name in shown for name in (*TASKS, *RECIPES, *EngineName))


def test_version(command: Command) -> None:
    from kogata import __version__

    assert output(command, "--version") == f"kogata {__version__}\n"


def test_names_are_those_of_the_core() -> None:
    assert tuple(task.name for task in BUILTIN_TASKS) == TASKS
    assert built_in() == RECIPES
    assert {engine.name for engine in ENGINES} | {"none"} == set(EngineName)


@pytest.mark.parametrize(
    ("words", "expected"),
    [("kogata comp", {"compress"}), ("kogata compress fashion", {"fashion-lenet300", "fashion-lenet5"}),
     ("kogata compress digits-mlp --recipe d", {"deep-compression"})],
)  # fmt: skip
def test_completion(command: Command, words: str, expected: set[str]) -> None:
    last = str(len(words.split()) - 1)
    shown = output(command, _KOGATA_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=last)
    assert set(shown.split()) == expected
