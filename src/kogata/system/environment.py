"""Describe the machine and software of a measurement, without which it can be neither judged nor repeated."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")

# fmt: off
# Flags that decide the speed of float and integer arithmetic; without VNNI or its like, int8 saturates or is emulated.
SPEED_FLAGS = frozenset(
    {
        "f16c", "fma", "avx", "avx2", "avx_vnni", "avx_vnni_int8",
        "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
        "amx_tile", "amx_int8", "amx_bf16",
        "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
    }
)
# fmt: on


def environment() -> dict[str, Any]:
    """Return the processor and its flags that matter for speed, torch's thread count, versions and the date (UTC).

    >>> sorted(environment())
    ['cpu', 'cpu_flags', 'date', 'system', 'threads', 'versions']
    """
    import torch  # imported here, because importing torch takes seconds

    cpu, flags = _cpu(CPUINFO)
    packages = ("kogata", "torch", "numpy", "onnxruntime")
    return {
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "cpu_flags": sorted(SPEED_FLAGS & flags),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu(cpuinfo: Path) -> tuple[str, set[str]]:
    """Return the model name and all flags of the first core, as far as the system reports them."""
    if not cpuinfo.exists():
        return platform.processor() or platform.machine(), set()
    first = cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    name = fields.get("model name") or platform.processor() or platform.machine()
    return name, set((fields.get("flags") or fields.get("Features") or "").split())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
