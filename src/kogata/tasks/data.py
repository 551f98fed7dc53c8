"""Find the images of MNIST and Fashion-MNIST on this machine or download them, and verify their checksums.

Sources: Y. LeCun et al., MNIST (1998); H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, arXiv:1708.07747.
"""

import os
import tempfile
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from kogata.errors import DataError
from kogata.system import progress
from kogata.tasks.idx import read_idx

Name = Literal["mnist", "fashion-mnist"]

DOWNLOAD_SECONDS = 30  # seconds without an answer before a download fails
BLOCK = 64 << 10  # bytes
DOWNLOAD_BYTES = 64 << 20  # limit of a download: no file of these sets is half as large


@dataclass(frozen=True)
class Images:
    """One data set: images ``[N, 28, 28]`` with values 0..255 and labels ``[N]``, for training and test, all uint8."""

    train_images_NHW: npt.NDArray[np.uint8]
    train_labels_N: npt.NDArray[np.uint8]
    test_images_NHW: npt.NDArray[np.uint8]
    test_labels_N: npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a data set comes from.

    ``sha256`` has one digest per file, in the order of the fields of `Images`, of the *decompressed* content, because mirrors
    and system packages may compress differently.
    """

    name: Name
    sha256: dict[str, str]
    mirrors: tuple[str, ...]
    system: Path | None = None
    package: str | None = None


SOURCES = (
    Source(
        name="mnist",
        sha256={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist"),
    ),
    Source(
        name="fashion-mnist",
        sha256={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        mirrors=(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        ),
        system=Path("/usr/share/datasets/fashion-mnist"),
        package="dataset-fashion-mnist",
    ),
)


def cache_folder() -> Path:
    """Return the folder of data that can be made or downloaded again: ``$XDG_CACHE_HOME/kogata`` or ``~/.cache/kogata``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kogata"


def named_folder(folder: Path | None) -> Path | None:
    """Return the data folder that the user names: ``folder``, or else ``$KOGATA_DATA``, or else None."""
    return folder or (Path(os.environ["KOGATA_DATA"]) if os.environ.get("KOGATA_DATA") else None)


def load(name: Name, folder: Path | None) -> Images:
    """Find a data set as `find` does, read it and check every file against its published digest.

    :raises DataError: a file is missing or damaged, or its content is not the published one.
    """
    found = find(name, folder)
    return Images(*(read_idx(_member(found, file), digest) for file, digest in _source(name).sha256.items()))


def find(name: Name, folder: Path | None) -> Path:
    """Return the folder with a data set's four IDX files: one found by `on_disk`, else the cache after a download.

    :raises DataError: the data set is not on this machine and cannot be downloaded; the message says what to do.
    """
    found = on_disk(name, folder)
    if found is None:
        source, found = _source(name), cache_folder() / "data" / name
        failures = _download(source, found)
        if failures:
            raise DataError(_missing(source, folder, failures))
    return found


def on_disk(name: Name, folder: Path | None) -> Path | None:
    """Return the folder of a data set on this machine, or None.

    Searched in this order: sub-folder ``name`` of ``folder`` or else of ``$KOGATA_DATA``, the system package, the cache
    folder.
    """
    return next((place for place in _places(_source(name), folder) if _complete(place, _source(name))), None)


def _source(name: Name) -> Source:
    return next(source for source in SOURCES if source.name == name)


def _places(source: Source, folder: Path | None) -> list[Path]:
    named = named_folder(folder)
    places = (named and named / source.name, source.system, cache_folder() / "data" / source.name)
    return [place for place in places if place]


def _member(folder: Path, file: str) -> Path:
    packed = folder / f"{file}.gz"
    return packed if packed.is_file() else folder / file


def _complete(folder: Path, source: Source) -> bool:
    return all(_member(folder, file).is_file() for file in source.sha256)


def _download(source: Source, folder: Path) -> list[str]:
    """Download the missing files to ``folder``. Returns why each mirror failed; nothing if one of them succeeded."""
    failures: list[str] = []
    for mirror in source.mirrors:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file, digest in source.sha256.items():
                if not _member(folder, file).is_file():
                    _fetch(f"{mirror}/{file}.gz", folder / f"{file}.gz", digest)
        except (OSError, HTTPException, ValueError, DataError) as error:
            failures.append(f"{mirror}: {error}")
        else:
            return []
    return failures


def _fetch(url: str, target: Path, sha256: str) -> None:
    with (
        tempfile.TemporaryDirectory(dir=target.parent) as folder,
        urllib.request.urlopen(url, timeout=DOWNLOAD_SECONDS) as response,
    ):
        part = Path(folder) / target.name
        size = int(response.headers.get("Content-Length") or 0)
        with (
            progress.bar(f"Downloading {target.name}, in blocks of 64 KiB", -(-size // BLOCK) or None) as line,
            part.open("wb") as file,
        ):
            while block := response.read(BLOCK):
                file.write(block)
                line.advance()
                if file.tell() > DOWNLOAD_BYTES:
                    raise DataError(f"{target.name} is larger than the limit of {DOWNLOAD_BYTES} bytes")
        read_idx(part, sha256)
        part.replace(target)


def _lacking(place: Path, source: Source) -> str:
    if not place.is_dir():
        return "no such folder"
    return ", ".join(f"no {file}" for file in source.sha256 if not _member(place, file).is_file())


def _missing(source: Source, folder: Path | None, failures: list[str]) -> str:
    looked = "\n".join(f"    {place}: {_lacking(place, source)}" for place in _places(source, folder))
    layout = f"DIR/{source.name}/{{{','.join(source.sha256)}}}"
    ways = [f"name a folder DIR with --data DIR or KOGATA_DATA=DIR that holds these, raw or as .gz:\n    {layout}"]
    if source.package:
        ways.append(f"install the system package: sudo apt-get install {source.package}")
    ways.append("run again where the download works; it failed here:\n" + "\n".join(f"    {why}" for why in failures))
    return f"The images of {source.name} were not found. Looked in\n{looked}\nDo one of these:\n" + "\n".join(
        f"  - {way}" for way in ways
    )
