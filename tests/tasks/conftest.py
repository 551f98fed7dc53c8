"""A small stand-in for each set of images: the real ones are neither needed nor downloaded."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from kogata.tasks import data


def small_files() -> dict[str, bytes]:
    """Return four IDX files whose images show their label as the brightness of a square."""
    files: dict[str, bytes] = {}
    for part, count in (("train", 240), ("t10k", 40)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.zeros((count, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[label * 2 : label * 2 + 8, 10:18] = 255
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            files[name] = header + array.tobytes()
    return files


def write_files(folder: Path, files: dict[str, bytes], packed: bool) -> None:
    """Write them raw or gzipped."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / f"{name}.gz" if packed else folder / name).write_bytes(gzip.compress(content) if packed else content)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Point all that is looked at to folders of the test, none of which exists yet; the small files are expected."""
    places = {name: tmp_path / name for name in ("user", "system", "cache", "mirror")}
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in small_files().items()}
    sources = tuple(
        data.Source(
            name=name,
            sha256=sha256,
            mirrors=((tmp_path / "dead").as_uri(), places["mirror"].as_uri()),
            system=places["system"],
            package=f"dataset-{name}",
        )
        for name in ("mnist", "fashion-mnist")
    )
    monkeypatch.setattr(data, "SOURCES", sources)
    monkeypatch.setenv("XDG_CACHE_HOME", str(places["cache"]))
    monkeypatch.delenv("KOGATA_DATA", raising=False)
    return places
