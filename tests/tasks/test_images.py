"""Pictures in class folders: decoded as written, kept once, and every damage told."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kogata.errors import DataError
from kogata.tasks import images
from kogata.tasks.images import ImageSet, Pictures, load_pictures

SMALL = ImageSet(name="small", classes=("cat", "dog"), height=5, width=7)


def pixels(part: str, label: int, number: int) -> np.ndarray:
    """An image that tells which it is: red by its part, green by its label, blue by its number; one corner is white."""
    image = np.full((5, 7, 3), (len(part), 100 * label, number), np.uint8)
    image[0, 6] = 255
    return image


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def files() -> dict[str, bytes]:
    """Six training pictures and two test pictures of each class, by path."""
    return {
        f"{part}/{name}/{number:04}.png": png(pixels(part, label, number))
        for part, count in (("train", 6), ("test", 2))
        for label, name in enumerate(SMALL.classes)
        for number in range(count)
    }


def write_folder(folder: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_archive(path: Path, contents: dict[str, bytes], *others: tarfile.TarInfo) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:xz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for other in others:
            archive.addfile(other)


def check(pictures: Pictures) -> None:
    """Every picture is there once, beside its own label."""
    for part, count, images_NCHW, labels_N in (
        ("train", 6, pictures.train_images_NCHW, pictures.train_labels_N),
        ("test", 2, pictures.test_images_NCHW, pictures.test_labels_N),
    ):
        assert images_NCHW.shape == (2 * count, 3, 5, 7)
        assert images_NCHW.dtype == torch.uint8
        numbers = images_NCHW[:, 2, 4, 0].tolist()
        assert sorted(zip(labels_N.tolist(), numbers, strict=True)) == [(y, n) for y in range(2) for n in range(count)]
        for image_CHW, label, number in zip(images_NCHW, labels_N.tolist(), numbers, strict=True):
            np.testing.assert_array_equal(image_CHW.permute(1, 2, 0).numpy(), pixels(part, label, number))


def test_a_folder_is_decoded(places: dict[str, Path]):
    write_folder(places["user"] / "small", files())
    pictures = load_pictures(SMALL, places["user"])
    check(pictures)
    assert len(set(pictures.train_labels_N[:6].tolist())) == 2, "the first pictures are of all classes"


@pytest.mark.parametrize("prefix", ["", "./", "small/"])
def test_an_archive_is_the_same_as_its_folder(prefix: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    write_folder(places["user"] / "small", files())
    write_archive(places["mirror"] / "small.tar.xz", {prefix + name: content for name, content in files().items()})
    expected = load_pictures(SMALL, places["user"])
    monkeypatch.setenv("KOGATA_DATA", str(places["mirror"]))
    found = load_pictures(SMALL, None)
    check(found)
    assert torch.equal(found.train_images_NCHW, expected.train_images_NCHW)
    assert torch.equal(found.test_labels_N, expected.test_labels_N)


def test_grey_and_jpeg_become_red_green_blue(places: dict[str, Path]):
    contents = files()
    grey, jpeg = io.BytesIO(), io.BytesIO()
    Image.new("L", (7, 5), 90).save(grey, "PNG")
    Image.new("RGB", (7, 5), (90, 90, 90)).save(jpeg, "JPEG", quality=100)
    contents = {name: jpeg.getvalue() if "dog" in name else grey.getvalue() for name in contents}
    write_folder(places["user"] / "small", contents)
    pictures = load_pictures(SMALL, places["user"])
    assert (pictures.train_images_NCHW.int() - 90).abs().max() <= 1


def test_decoded_once_unless_the_folder_changes(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    decoded = []
    decode = images._decode
    monkeypatch.setattr(images, "_decode", lambda *arguments: decoded.append(arguments) or decode(*arguments))
    folder = places["user"] / "small"
    write_folder(folder, files())
    for _ in range(2):
        check(load_pictures(SMALL, places["user"]))
    assert len(decoded) == 1
    (folder / "train/cat/0006.png").write_bytes(png(pixels("train", 0, 6)))
    assert len(load_pictures(SMALL, places["user"]).train_labels_N) == 13
    assert len(decoded) == 2


def test_damaged_tensors_are_decoded_again(places: dict[str, Path], caplog: pytest.LogCaptureFixture):
    write_folder(places["user"] / "small", files())
    load_pictures(SMALL, places["user"])
    (path,) = (places["cache"] / "kogata/images").iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    check(load_pictures(SMALL, places["user"]))
    assert "is damaged: decoding the pictures again" in caplog.text


def test_what_is_nowhere_is_told(places: dict[str, Path]):
    with pytest.raises(DataError, match=r"(?s)small were not found.*user/small\n.*small\.tar\.xz.*--data DIR.*5×7 pixels"):
        load_pictures(SMALL, places["user"])


GOOD = files()
ODD = png(np.zeros((7, 5, 3), np.uint8))


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({name: b"" for name in GOOD if "test/dog" in name}, r"test/dog/0000\.png: cannot be decoded"),
        ({"train/cat/0003.png": GOOD["train/cat/0003.png"][:-30]}, r"train/cat/0003\.png: cannot be decoded .*Replace it"),
        ({"train/cat/0003.jpg": b"GIF89a not a picture"}, r"train/cat/0003\.jpg: cannot be decoded"),
        ({"train/dog/0001.png": ODD}, r"train/dog/0001\.png: 7×5 pixels, expected 5×7"),
        ({"train/dog/0001.png": bytes(images.FILE_BYTES + 1)}, r"train/dog/0001\.png: larger than the limit"),
        ({"train/bird/0.png": GOOD["train/cat/0003.png"]}, r"train/ has pictures in bird, cat, dog; expected .*cat, dog"),
    ],
)
def test_damage_is_told(changed: dict[str, bytes], message: str, archived: bool, places: dict[str, Path]):
    if archived:
        write_archive(places["user"] / "small.tar.xz", GOOD | changed)
    else:
        write_folder(places["user"] / "small", GOOD | changed)
    with pytest.raises(DataError, match=message):
        load_pictures(SMALL, places["user"])


@pytest.mark.parametrize("lacking", ["test/dog", "train/cat", "test"])
def test_a_missing_class_is_told(lacking: str, places: dict[str, Path]):
    kept = {name: content for name, content in GOOD.items() if not name.startswith(lacking)}
    write_folder(places["user"] / "small", kept)
    with pytest.raises(DataError, match=rf"user/small: {lacking.partition('/')[0]}/ has pictures in .*; expected some in each"):
        load_pictures(SMALL, places["user"])


def test_too_many_pictures_are_refused(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    write_folder(places["user"] / "small", GOOD)
    monkeypatch.setattr(images, "SET_BYTES", 15 * 3 * 5 * 7)
    with pytest.raises(DataError, match="more than 15 pictures"):
        load_pictures(SMALL, places["user"])


def link(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member


@pytest.mark.parametrize(
    "member", [tarfile.TarInfo("../train/cat/0009.png"), tarfile.TarInfo("/train/cat/0009.png"), link("train/cat/0009.png")]
)
def test_members_that_lead_out_are_refused(member: tarfile.TarInfo, places: dict[str, Path]):
    write_archive(places["user"] / "small.tar.xz", GOOD, member)
    with pytest.raises(DataError, match=r"small\.tar\.xz: member .*0009\.png' is a link or leads out"):
        load_pictures(SMALL, places["user"])


@pytest.mark.parametrize("damage", ["cut", "junk"])
def test_a_damaged_archive_is_told(damage: str, places: dict[str, Path]):
    path = places["user"] / "small.tar.xz"
    write_archive(path, GOOD)
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "junk": b"junk" * 500}[damage])
    with pytest.raises(DataError, match=r"small\.tar\.xz: cannot be read"):
        load_pictures(SMALL, places["user"])
