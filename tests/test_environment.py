"""The record of what a measurement was made on."""

import json
from datetime import datetime
from pathlib import Path

import pytest
import torch

from kogata.system import environment as module
from kogata.system.environment import environment


def test_it_is_plain_and_of_this_machine():
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"] == torch.__version__
    assert datetime.fromisoformat(found["date"]).utcoffset() is not None


@pytest.mark.parametrize(
    ("text", "cpu", "flags"),
    [
        (
            "model name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni\n\nmodel name\t: other\n",
            "Some CPU",
            ["avx2", "avx512_vnni"],
        ),
        ("processor : 0\nmodel name : Arm\nFeatures : fp asimddp crc32\n", "Arm", ["asimddp"]),
    ],
)
def test_the_flags_that_matter(text: str, cpu: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "cpuinfo")
    assert environment()["cpu"].startswith(cpu)
    assert environment()["cpu_flags"] == flags


def test_a_system_without_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "absent")
    assert environment()["cpu_flags"] == []
    assert environment()["cpu"]
