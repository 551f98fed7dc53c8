"""A million changed files: each is refused, or loads quickly, in little memory, and to the same tensors when saved again.

Small valid files, one for each form and float type, with buffers, are changed at random: bytes flipped, cut or inserted, with
the old checksum or the right one; numbers, texts and lists of the manifest replaced, removed or doubled; bytes of coded planes
changed. Each file is read and every weight computed, in a worker process. Counted are:

- crash: the worker died, or did not answer for a minute;
- over budget: it took more than 2 s of processor time, or more than 256 MiB of memory;
- other error: anything was raised but FileFormatError;
- wrong: a file loaded although its checksum is not that of its contents; or a tensor has not the shape that its form states;
  or the forms, saved and read again, give other tensors.

Finished thousands are kept in ``runs/fuzz/`` and not repeated; delete that folder to start again. Each case follows from its
number; ``--case N`` runs one alone, in this process.
"""

import argparse
import json
import multiprocessing
import random
import resource
import struct
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from benchmarks.harness import Row, run, runs
from kogata.coding import Budget
from kogata.errors import FileFormatError
from kogata.forms import Form
from kogata.network import surgery
from kogata.network.sites import sites_of
from kogata.storage.layout import file_header
from kogata.storage.manifest import read_manifest, write_manifest
from kogata.storage.read import read_file
from kogata.storage.write import pack
from tests.storage.zoo import every_form

MINUTES = 400
SEED = 0
CHUNK = 1000
CPU_SECONDS, MEMORY, HANG = 2.0, 256 << 20, 60.0
RUNS = runs("fuzz")
NUMBERS = (0, 1, 2, 3, -1, 7, 255, 256, 65_535, 65_536, 1 << 20, 1 << 28, 1 << 31, (1 << 32) - 1, (1 << 53) - 1)
TEXTS = (
    "",
    "dense",
    "sum",
    "tied",
    "float16",
    "float64",
    "symbols",
    "mask",
    "int64",
    "hash",
    "crops",
    "ab,bc->ac",
    "\ud800",
    "x" * 999,
)


class _Holder(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(form.shape))
        self.register_buffer("count", torch.arange(20))
        self.register_buffer("mean", torch.linspace(0, 1, 5))
        surgery.attach(self, next(site for site in sites_of(self) if site.name == "weight"), form)


def seeds() -> list[bytes]:
    """The valid files, in a fixed order."""
    return [pack(_Holder(form)).data for form in every_form().values()]


def signed(payload: bytes) -> bytes:
    """A file with the right checksum of any payload."""
    return file_header(2, "0.1.0", payload) + payload


def flipped(data: bytes, rng: random.Random) -> bytes:
    """One to four bytes changed, a part cut out or doubled, or the end cut off."""
    out = bytearray(data)
    kind, at = rng.randrange(4), rng.randrange(len(out)) if out else 0
    if kind == 0:
        for _ in range(rng.randint(1, 4)):
            out[rng.randrange(len(out))] ^= rng.randint(1, 255)
    elif kind == 1:
        del out[at : at + rng.randint(1, 8)]
    elif kind == 2:
        out[at:at] = out[at : at + rng.randint(1, 8)] + bytes([rng.randrange(256)])
    else:
        del out[at:]
    return bytes(out)


def changed(value: Any, rng: random.Random, share: float) -> Any:
    """A JSON value with a share of its numbers, texts, lists and mappings replaced, removed or doubled."""
    hit = rng.random() < share
    if isinstance(value, bool) or value is None:
        return rng.choice([True, False, None, 1]) if hit else value
    if isinstance(value, int):
        return rng.choice([value + 1, value - 1, 2 * value, -value, rng.choice(NUMBERS)]) if hit else value
    if isinstance(value, str):
        return rng.choice(TEXTS) if hit else value
    if isinstance(value, dict):
        out = {key: changed(part, rng, share) for key, part in value.items()}
        if hit and out:
            key = rng.choice(list(out))
            out = rng.choice([{k: v for k, v in out.items() if k != key}, out | {f"{key}x": out[key]}, {"x": value}])
        return out
    out = [changed(part, rng, share) for part in value]
    if hit and out:
        at = rng.randrange(len(out))
        out = rng.choice([out[:at] + out[at + 1 :], [*out[:at], out[at], *out[at:]], out[::-1], [out], NUMBERS[at % 3] * out])
    return out


def mutant(number: int, files: Sequence[bytes]) -> tuple[bytes, bool]:
    """The file of a case, and whether its checksum was renewed."""
    rng = random.Random(SEED << 40 | number)
    data = rng.choice(files)
    kind = rng.randrange(8)
    if kind == 0:
        return flipped(data, rng), False
    payload = data[8 + struct.unpack_from("<Q", data)[0] :]
    (size,) = struct.unpack_from("<I", payload)
    manifest, rest = payload[4 : 4 + size], payload[4 + size :]
    if kind == 1:
        return signed(flipped(payload, rng)), True
    if kind == 2 and rest:
        return signed(payload[: 4 + size] + flipped(rest, rng)), True
    entries = list(read_manifest(manifest, Budget()))
    with suppress(Exception):  # a change that the writer refuses, such as a number past 2**53: the manifest stays as it was
        manifest = write_manifest(changed(entries, rng, rng.choice([0.01, 0.03, 0.1])))
    if kind == 7 and rest:
        rest = flipped(rest, rng)
    return signed(struct.pack("<I", len(manifest)) + manifest + rest), True


def outcome(data: bytes, renewed: bool, original: Sequence[bytes], folder: Path) -> str:
    """What became of a file: refused, loaded, wrong or another error; with details after a colon."""
    path = folder / "mutant.kogata"
    path.write_bytes(data)
    try:
        forms = read_file(path).forms
        tensors = {names: form.dense().detach() for names, form in forms.items()}
    except FileFormatError:
        return "refused"
    except MemoryError:
        return "over budget: MemoryError"
    except Exception as error:
        return f"other error: {type(error).__name__}: {str(error)[:200]}"
    if not renewed and data not in original:
        return "wrong: it has another checksum"
    for names, form in forms.items():
        if tensors[names].shape != form.shape:
            return f"wrong: {form.describe()} of shape {tuple(form.shape)} gives {tuple(tensors[names].shape)}"
        try:
            path.write_bytes(pack(_Holder(form)).data)
            (again,) = (f for n, f in read_file(path).forms.items() if n[0] == "weight")
        except Exception as error:
            return f"wrong: {form.describe()} cannot be saved again: {type(error).__name__}: {str(error)[:200]}"
        if not torch.equal(_bits(again.dense().detach()), _bits(tensors[names])):
            return f"wrong: {form.describe()} differs when saved and read again"
    return "loaded"


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def work(pipe: Connection, first: int, last: int) -> None:
    """Run the cases of a range, reporting each one before and after."""
    torch.set_num_threads(1)
    files = seeds()
    with TemporaryDirectory() as name:
        for data in files:
            outcome(data, True, files, Path(name))  # compiles and loads what the first cases would
        base = _peak()
        limit = _memory_in_use() + 8 * MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for number in range(first, last):
            pipe.send((number, ""))
            data, renewed = mutant(number, files)
            start = time.process_time()
            found = outcome(data, renewed, files, Path(name))
            seconds = time.process_time() - start
            if found in ("loaded", "refused") and (seconds > CPU_SECONDS or _peak() > base + MEMORY):
                found = f"over budget: {seconds:.1f} s, {(_peak() - base) >> 20} MiB"
                base = max(base, _peak())
            pipe.send((number, found))
    pipe.send((last, "done"))


def _memory_in_use() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def chunk(first: int, last: int) -> dict[int, str]:
    """The outcome of each case of a range. A worker that dies or hangs is replaced, and its case counts as a crash."""
    found: dict[int, str] = {}
    context = multiprocessing.get_context("spawn")
    while first < last:
        here, there = context.Pipe()
        worker = context.Process(target=work, args=(there, first, last), daemon=True)
        worker.start()
        there.close()
        current = first
        try:
            while here.poll(HANG):
                current, text = here.recv()
                if text == "done":
                    break
                if text:
                    found[current] = text
            else:
                found[current] = f"crash: no answer in {HANG:.0f} s"
        except EOFError:
            worker.join()
            found[current] = f"crash: exit status {worker.exitcode}"
        worker.kill()
        worker.join()
        first = current + 1
    return found


def measure(count: int) -> Counter[str]:
    """The number of cases of each outcome, from kept results where there are any."""
    RUNS.mkdir(parents=True, exist_ok=True)
    total: Counter[str] = Counter()
    for first in range(0, count, CHUNK):
        last = min(first + CHUNK, count)
        path = RUNS / f"{first}-{last}.json"
        if not path.exists():
            found = chunk(first, last)
            kept = {number: text for number, text in found.items() if text not in ("loaded", "refused")}
            counts = Counter(text.partition(":")[0] for text in found.values())
            path.write_text(json.dumps({"counts": counts, "cases": kept}, indent=1), encoding="utf-8")
            for number, text in kept.items():
                print(f"case {number}: {text}", flush=True)
        total.update(json.loads(path.read_text(encoding="utf-8"))["counts"])
    return total


def rows(count: int) -> list[Row]:
    """The number of files, of each harmless outcome, and of each fault, which must be none."""
    total = measure(count)
    case = "changed files of every form"
    out = [Row(case, "files", sum(total.values()), ""), *(Row(case, kind, total[kind], "") for kind in ("refused", "loaded"))]
    return [*out, *(Row(case, kind, total[kind], "", 0, "<=") for kind in ("crash", "over budget", "other error", "wrong"))]


def main() -> None:
    """Print and store all rows; the exit status is 1 if any file did harm."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="the number of changed files (default: 1,000,000)")
    parser.add_argument("--case", type=int, help="run this case alone and show what becomes of it")
    asked = parser.parse_args()
    if asked.case is not None:
        files = seeds()
        with TemporaryDirectory() as name:
            print(outcome(*mutant(asked.case, files), files, Path(name)))
        return
    raise SystemExit(run("fuzz", rows(asked.count), [SEED]))


if __name__ == "__main__":
    main()
