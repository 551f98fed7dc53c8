"""A cache on disk of the teacher's outputs for each example: the teacher runs once, however many students learn from it.

An example is identified by a digest of its input's bytes, so batches may come in any order. The folder holds ``header.json``,
``digests.npy`` (uint8 ``[examples, 16]``, BLAKE2b, in ascending order) and for each tensor of the output and each watched layer
an array ``[examples, ...]``, mapped into memory and never unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from kogata.errors import DataError
from kogata.network.batch import count_of, move, split, tensors
from kogata.network.fingerprint import fingerprint
from kogata.system import progress
from kogata.training.loop import autocast
from kogata.training.teachers.observe import Live, Seen

SCHEMA = 1
Precision = Literal["float16", "float32"]
Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Header:
    """The content of ``header.json``. ``shapes`` are shapes per example: first of the outputs, then of each of ``layers``."""

    schema: int
    teacher: str  # SHA-256 of its weights and buffers
    precision: Precision
    rows: int
    outputs: int  # number of tensors in the output if it is a nesting of tensors; 0 if it is a single tensor
    layers: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]


class Cached:
    """A teacher whose outputs are read from a cache folder.

    Raises DataError when the folder is damaged, was made with another teacher or precision, or lacks a layer.

    >>> from tempfile import TemporaryDirectory
    >>> teacher, inputs = nn.Linear(4, 2), torch.randn(8, 4)
    >>> with TemporaryDirectory() as parent:
    ...     make(Path(parent, "cache"), teacher, [inputs])
    ...     cached = Cached(Path(parent, "cache"), teacher, (), "float16")
    ...     seen = cached(inputs[:3], torch.device("cpu"))
    >>> tuple(seen.output.shape)
    (3, 2)
    """

    def __init__(self, folder: Path, teacher: nn.Module, layers: Collection[str], precision: Precision) -> None:
        self._folder = folder
        self._header, digests_R16, self._arrays = _open(folder)
        if self._header.teacher != fingerprint(teacher):
            raise DataError(f"cache {folder}: it was made with another teacher. Delete it, or name another folder.")
        if self._header.precision != precision:
            raise DataError(
                f"cache {folder}: it holds {self._header.precision} but {precision} was requested. Request that, or delete it."
            )
        if missing := [name for name in layers if name not in self._header.layers]:
            held = ", ".join(self._header.layers) or "none"
            raise DataError(
                f"cache {folder}: it lacks the layers {', '.join(missing)}; it holds {held}. Delete it, or name another folder."
            )
        self._layers = [name for name in self._header.layers if name in layers]
        self._rows = {row.tobytes(): number for number, row in enumerate(digests_R16)}

    def __call__(self, inputs: Any, device: torch.device) -> Seen:
        """The stored outputs and layers for each example of the inputs, in float32."""
        numbers = self._find(inputs)
        outputs = [self._read(place, numbers, device) for place in range(max(1, self._header.outputs))]
        first = len(outputs)
        places = {name: first + self._header.layers.index(name) for name in self._layers}
        layers = {name: self._read(place, numbers, device) for name, place in places.items()}
        return Seen(tuple(outputs) if self._header.outputs else outputs[0], layers)

    def _find(self, inputs: Any) -> npt.NDArray[np.int64]:
        found = [self._rows.get(key) for key in keys(inputs)]
        if None in found:
            raise DataError(
                f"cache {self._folder}: {found.count(None)} of {len(found)} examples of a training batch are not in it. It "
                "serves only the data it was made from, without random augmentation: train on that data, delete the "
                "cache to have it made anew, or leave it out."
            )
        return np.array(found, dtype=np.int64)

    def check(self, batches: Iterable[Any], seed: int) -> None:
        """Raise DataError when an example of the batches is not in the cache. Only digests are computed."""
        with _seeded(seed):
            for batch in batches:
                self._find(split(batch)[0])

    def _read(self, place: int, numbers: npt.NDArray[np.int64], device: torch.device) -> Tensor:
        return torch.from_numpy(np.asarray(self._arrays[place][numbers], dtype=np.float32)).to(device)


def keys(inputs: Any) -> list[bytes]:
    """One digest for each example, over all input tensors, their names, dtypes and shapes. Raises DataError without rows."""
    parts = list(_named(inputs, ""))
    counts = {len(tensor) if tensor.ndim else 0 for _, tensor in parts}
    if len(counts) != 1 or 0 in counts:
        raise DataError("cache: each tensor of a batch's inputs must have one row for each example; leave out the cache.")
    whole = [
        (f"{name} {tensor.dtype} {tuple(tensor.shape[1:])} ".encode(), _bytes(tensor)) for name, tensor in parts
    ]  # fmt: skip
    digests = [hashlib.blake2b(digest_size=16) for _ in range(counts.pop())]
    for label, rows in whole:
        for digest, row in zip(digests, rows, strict=True):
            digest.update(label)
            digest.update(row.tobytes())
    return [digest.digest() for digest in digests]


def make(
    folder: Path, teacher: nn.Module, batches: Iterable[Any], layers: Sequence[str] = (), *, precision: Precision = "float16",
    seed: int = 0,
) -> None:  # fmt: skip
    """Run the teacher once over the batches and store its outputs; the folder appears complete or not at all.

    A first pass only counts examples; the second runs the teacher.

    :param layers: paths of modules whose outputs are stored too.
    :param precision: dtype of the stored arrays.
    :raises DataError: the second pass finds other examples than the first (as with random augmentation), an output is not
        finite or its shape differs between examples, or the folder cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"cache {folder}: it exists and is not a cache. Name another folder, or delete it.")
    with _seeded(seed):
        known = sorted({key for batch in batches for key in keys(split(batch)[0])})
    if not known:
        raise DataError("cache: the training data is empty; give at least one batch.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            with _seeded(seed + 1):
                _fill(part, teacher, batches, layers, precision, known)
            part.chmod(0o755)
            if not (folder / "header.json").exists():  # another process of the same training may have made it first
                os.replace(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"cache {folder}: cannot be written: {error.strerror or error}. Free space or name another folder."
        ) from error


def _fill(
    part: Path, teacher: nn.Module, batches: Iterable[Any], layers: Sequence[str], precision: Precision, known: list[bytes]
) -> None:
    numbers = {key: number for number, key in enumerate(known)}
    device = next((p.device for p in teacher.parameters()), torch.device("cpu"))
    live, writer, done = Live(teacher, layers), _Writer(part, precision, len(known)), set[int]()
    seen: Seen | None = None
    with progress.bar("Caching the teacher", count_of(batches)) as line:
        for batch in batches:
            inputs = split(batch)[0]
            rows = [numbers.get(key, -1) for key in keys(inputs)]
            if -1 in rows:
                raise DataError(
                    "cache: the inputs differ from pass to pass, by random augmentation or because a last batch is dropped. "
                    "Train on fixed inputs, or leave out the cache."
                )
            if not done.issuperset(rows):
                with autocast(device):  # as in the training loop, so that a cached run equals a live one
                    seen = live(move(inputs, device), device)
                writer.write(rows, [*tensors(seen.output), *seen.layers.values()])
                done.update(rows)
            line.advance()
    if seen is None or len(done) < len(known):
        raise DataError("cache: a second pass over the training data had fewer examples; give data that every pass repeats.")
    header = Header(
        schema=SCHEMA, teacher=fingerprint(teacher), precision=precision, rows=len(known),
        outputs=0 if isinstance(seen.output, Tensor) else len(list(tensors(seen.output))), layers=tuple(seen.layers),
        shapes=writer.shapes,
    )  # fmt: skip
    (part / "header.json").write_text(json.dumps(asdict(header)), encoding="utf-8")
    writer.close()
    np.save(part / "digests.npy", np.frombuffer(b"".join(known), np.uint8).reshape(-1, 16))


class _Writer:
    """Writes the arrays of a new cache, which are created at the first batch."""

    def __init__(self, part: Path, precision: Precision, rows: int) -> None:
        self._part, self._precision, self._rows = part, precision, rows
        self._arrays: list[np.memmap[Any, Any]] = []
        self.shapes: tuple[tuple[int, ...], ...] = ()

    def write(self, rows: Sequence[int], given: Sequence[Tensor]) -> None:
        if not self._arrays:
            self.shapes = tuple(tuple(tensor.shape[1:]) for tensor in given)
            for place, shape in enumerate(self.shapes):
                path, whole = self._part / f"{place}.npy", (self._rows, *shape)
                self._arrays.append(np.lib.format.open_memmap(path, mode="w+", dtype=self._precision, shape=whole))
        found = [tuple(tensor.shape) for tensor in given]
        shapes = tuple(shape[1:] for shape in found)
        if shapes != self.shapes or any(len(tensor) != len(rows) for tensor in given if tensor.ndim):
            raise DataError(
                f"cache: for {len(rows)} examples the teacher gives shapes {found}; expected one "
                f"row for each, of shapes {list(self.shapes)} as in the first batch. Leave out the cache."
            )
        for array, tensor in zip(self._arrays, given, strict=True):
            values = tensor.detach().cpu().to(getattr(torch, self._precision)).numpy()
            if not np.isfinite(values).all():
                raise DataError(
                    f"cache: the teacher gives values that are not finite in {self._precision}. Check its data, or keep it in "
                    "float32 (cache_precision)."
                )
            array[np.array(rows)] = values

    def close(self) -> None:
        for array in self._arrays:
            array.flush()


def _open(folder: Path) -> tuple[Header, npt.NDArray[np.uint8], list[Array]]:
    """Open a cache. Raises DataError unless every file agrees with the header."""
    try:
        header = TypeAdapter(Header).validate_json((folder / "header.json").read_bytes())
        if header.schema != SCHEMA or len(header.shapes) != max(1, header.outputs) + len(header.layers):
            raise ValueError(f"its schema is {header.schema} and it lists {len(header.shapes)} arrays")
        digests_R16 = _array(folder / "digests.npy", "uint8", (header.rows, 16))
        arrays = [
            _array(folder / f"{place}.npy", header.precision, (header.rows, *shape))
            for place, shape in enumerate(header.shapes)
        ]  # fmt: skip
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"cache {folder}: it is damaged: {reason}. Delete it to have it made anew.") from error
    return header, digests_R16, arrays


def _array(path: Path, dtype: str, shape: tuple[int, ...]) -> Array:
    """Open an array as a memory map, so that its dtype, shape and length are checked before anything is allocated."""
    array = cast("Array", np.load(path, mmap_mode="r", allow_pickle=False))
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        raise ValueError(f"{path.name} is {array.dtype} {array.shape}, the header says {dtype} {shape}")
    return array


def _named(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a nested structure, with its path in it."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in cast("Mapping[Any, Any]", value).items():
            yield from _named(inner, f"{name}.{key}")
    elif isinstance(value, tuple | list):
        for number, inner in enumerate(cast("Sequence[Any]", value)):
            yield from _named(inner, f"{name}.{number}")


def _bytes(tensor: Tensor) -> npt.NDArray[np.uint8]:
    """The bytes of a tensor as ``[rows, bytes]``."""
    flat = tensor.detach().cpu().contiguous().reshape(len(tensor), -1)
    return flat.view(torch.uint8).numpy() if flat.numel() else np.zeros((len(tensor), 0), np.uint8)


@contextmanager
def _seeded(seed: int) -> Generator[None, None, None]:
    """Seed torch's generator unlike any epoch of training does, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
