"""Files written whole or not at all, locks, and compiled loops where nothing can be kept."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from numba.core import caching

from kogata.errors import DataError, UsageError
from kogata.system import compiled
from kogata.system.atomic import remove_leftovers, writing
from kogata.system.lock import locked
from kogata.system.modes import ordinary


def test_loops_compile_without_a_folder_to_keep_them(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(caching.FunctionCache._impl_class, "_locator_classes", [])
    monkeypatch.setattr(compiled, "_warn", compiled._warn.__wrapped__)
    with caplog.at_level(logging.WARNING, "kogata"):

        @compiled.cached_njit()
        def twice(x: int) -> int:
            return 2 * x

    assert twice(21) == 42
    assert "Set NUMBA_CACHE_DIR" in caplog.text


def test_a_lock_is_held_by_one_and_given_back(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UsageError, match="another process is working in this folder"), locked(tmp_path):
        pass
    with locked(tmp_path):
        assert not list(tmp_path.iterdir())


def test_a_body_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), writing(path) as file:
        file.write("text")  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("file", b"old")]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Free space"), writing(tmp_path / "file" / "new"):
        pass


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(tmp_path: Path) -> None:
    with writing(tmp_path / "file") as file:
        left = Path(file.name).read_bytes(), Path(file.name).name
    (tmp_path / left[1]).write_bytes(left[0])  # as a process leaves it that is killed while it writes
    for name in (".mine", "other.part", ".file.part"):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", ".mine", "other.part", ".file.part"}


def test_autocast_within_ordinary_modes_sees_weights_as_they_become() -> None:
    layer, inputs = torch.nn.Linear(4, 4), torch.randn(2, 4)
    with ordinary():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            before = layer(inputs)
        with torch.no_grad():
            layer.weight.mul_(2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not torch.equal(layer(inputs), before)


def test_no_loop_needs_a_folder_for_its_machine_code() -> None:
    """numba's own ``cache=True`` fails where no folder can be written to; ``cached_njit`` does not."""
    sources = Path(compiled.__file__).parents[1].rglob("*.py")
    assert [path.name for path in sources if "cache=True" in path.read_text(encoding="utf-8")] == ["compiled.py"]
