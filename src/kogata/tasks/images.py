"""Image data sets in class folders: ``{train,test}/CLASS/*.{jpg,jpeg,png}``, in a folder or a tar file.

The images are decoded once, which takes seconds to minutes, and stored in the cache folder as one tensor for each part.
"""

import hashlib
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kogata.errors import DataError, UsageError
from kogata.system import progress
from kogata.tasks.data import cache_folder, named_folder
from kogata.tasks.idx import REMEDY
from kogata.tasks.kept import keep, read_kept

PARTS = ("train", "test")
SUFFIXES = (".jpg", ".jpeg", ".png")
ARCHIVES = (".tar.xz", ".tar.gz", ".tar")
FILE_BYTES = 1 << 20  # limit of one image file, far above any image of these sizes
SET_BYTES = 2 << 30  # limit of all decoded images together


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """The expected content of a data set: its class folders in the order of their labels, and the image size in pixels."""

    name: str
    classes: tuple[str, ...]
    height: int
    width: int


CIFAR10 = ImageSet(
    name="cifar10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    height=32,
    width=32,
)


@dataclass(frozen=True, eq=False)
class Pictures:
    """RGB images ``[N, 3, H, W]``, uint8 in 0..255, and labels ``[N]``, int64, for training and for the score."""

    train_images_NCHW: Tensor
    train_labels_N: Tensor
    test_images_NCHW: Tensor
    test_labels_N: Tensor


def load_pictures(wanted: ImageSet, folder: Path | None) -> Pictures:
    """Read a data set from the cache, or find and decode it.

    Searched in this order: sub-folder ``name`` of ``folder`` or else of ``$KOGATA_DATA``, ``name.tar.xz`` (or ``.tar.gz``,
    ``.tar``) there, the same in the cache folder. Images are ordered by a hash of their paths, so the first images of a set are
    a mixture of all classes.

    :raises DataError: the data set is not found or lacks a class, or an image is damaged or has another size.
    :raises UsageError: images must be decoded and Pillow is not installed.
    """
    where = _find(wanted, folder)
    source = _Folder(where) if where.is_dir() else _Archive(where)
    path = cache_folder() / "images" / f"{wanted.name}-{source.digest()[:16]}.safetensors"
    tensors = read_kept(path, "decoding the pictures again")
    if tensors is None:
        tensors = _decode(wanted, source, where)
        keep(path, tensors, "The decoded pictures are not kept: they will be decoded again next time.")
    return Pictures(**tensors)


def _find(wanted: ImageSet, folder: Path | None) -> Path:
    """The folder or tar file of a data set."""
    homes = [home for home in (named_folder(folder), cache_folder() / "data") if home]
    folders = [home / wanted.name for home in homes]
    archives = [home / f"{wanted.name}{suffix}" for home in homes for suffix in ARCHIVES]
    for place in (*folders, *archives):
        if place.is_dir() if place in folders else place.is_file():
            return place
    looked = "\n".join(f"    {place}" for place in (*folders, *archives))
    raise DataError(
        f"The pictures of {wanted.name} were not found. Looked for\n{looked}\nName a folder DIR with --data DIR or "
        f"KOGATA_DATA=DIR that holds DIR/{wanted.name}/{{train,test}}/{{{','.join(wanted.classes)}}}/, PNG or JPEG files of "
        f"{wanted.height}×{wanted.width} pixels, or these folders in one tar file, DIR/{wanted.name}.tar.xz."
    )


@dataclass(frozen=True)
class _Folder:
    root: Path

    def digest(self) -> str:
        """A digest of paths, sizes and modification times; reading all contents would take as long as decoding them."""
        digest = hashlib.sha256()
        for name, path in self._files():
            status = path.stat()
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        return digest.hexdigest()

    def contents(self) -> Iterator[tuple[str, bytes]]:
        for name, path in self._files():
            try:
                with path.open("rb") as file:
                    yield name, file.read(FILE_BYTES + 1)
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror}). {REMEDY}") from error

    def _files(self) -> list[tuple[str, Path]]:
        paths = [path for path in self.root.glob("*/*/*") if path.suffix.lower() in SUFFIXES]
        return sorted((path.relative_to(self.root).as_posix(), path) for path in paths)


@dataclass(frozen=True)
class _Archive:
    """A tar file whose members are read in place: nothing is extracted to disk, whatever their names."""

    path: Path

    def digest(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def contents(self) -> Iterator[tuple[str, bytes]]:
        try:
            with tarfile.open(self.path, "r|*") as archive:
                for member in archive:
                    path = PurePosixPath(member.name)
                    if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                        raise DataError(f"{self.path}: member {member.name!r} is a link or leads out of the archive. {REMEDY}")
                    file = archive.extractfile(member)
                    if file is not None and path.suffix.lower() in SUFFIXES:
                        yield "/".join(path.parts[-3:]), file.read(FILE_BYTES + 1)
        except (tarfile.TarError, OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise DataError(f"{self.path}: cannot be read ({type(error).__name__}: {error}). {REMEDY}") from error


def _decode(wanted: ImageSet, source: _Folder | _Archive, where: Path) -> dict[str, Tensor]:
    """Decode every image; the keys of the result are the fields of `Pictures`."""
    pictures: dict[str, npt.NDArray[np.uint8]] = {}
    limit = SET_BYTES // (3 * wanted.height * wanted.width)
    with progress.bar(f"Decoding the pictures of {wanted.name}", None) as line:
        for path, content in source.contents():
            if path.partition("/")[0] in PARTS:
                pictures[path] = _pixels(wanted, f"{where}: {path}", content)
                line.advance()
            if len(pictures) > limit:
                raise DataError(f"{where}: more than {limit} pictures, over {SET_BYTES} bytes when decoded. {REMEDY}")
    tensors: dict[str, Tensor] = {}
    for part in PARTS:
        paths = sorted((path for path in pictures if path.startswith(f"{part}/")), key=_shuffled)
        names = [path.split("/")[1] for path in paths]
        if set(names) != set(wanted.classes):
            raise DataError(
                f"{where}: {part}/ has pictures in {', '.join(sorted(set(names))) or 'no class folder'}; expected some in each "
                f"of {', '.join(wanted.classes)}, and in no other."
            )
        images_NHWC = np.stack([pictures[path] for path in paths])
        tensors[f"{part}_images_NCHW"] = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).contiguous()
        tensors[f"{part}_labels_N"] = torch.tensor([wanted.classes.index(name) for name in names])
    return tensors


def _shuffled(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()


def _pixels(wanted: ImageSet, where: str, content: bytes) -> npt.NDArray[np.uint8]:
    """Decode one image to uint8 ``[H, W, 3]``; its size is checked before it is decoded."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError(f"The pictures of {wanted.name} are read with Pillow: pip install 'kogata[images]'.") from error
    if len(content) > FILE_BYTES:
        raise DataError(f"{where}: larger than the limit of {FILE_BYTES} bytes. {REMEDY}")
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            size = image.height, image.width
            pixels_HW3 = np.array(image.convert("RGB")) if size == (wanted.height, wanted.width) else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: cannot be decoded ({type(error).__name__}: {error}). {REMEDY}") from error
    if pixels_HW3 is None:
        raise DataError(f"{where}: {size[0]}×{size[1]} pixels, expected {wanted.height}×{wanted.width}. {REMEDY}")
    return pixels_HW3
