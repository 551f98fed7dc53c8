"""Finding the images: the order of the places, the checked download, and what is said when there are none."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from kogata.errors import DataError
from kogata.tasks import data

from .conftest import small_files, write_files


def test_the_order_of_the_places(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    files = small_files()
    assert data.on_disk("mnist", None) is None
    cached = places["cache"] / "kogata/data/mnist"
    environment, named = tmp_path / "environment", places["user"]
    for folder in (cached, places["system"], environment / "mnist"):
        write_files(folder, files, packed=True)
        if folder == environment / "mnist":
            monkeypatch.setenv("KOGATA_DATA", str(environment))
        assert data.find("mnist", None) == folder
    write_files(named / "mnist", files, packed=False)
    assert data.find("mnist", named) == named / "mnist"


def test_a_named_folder_without_the_set_does_not_hide_the_others(places: dict[str, Path]):
    write_files(places["user"] / "fashion-mnist", small_files(), packed=False)
    write_files(places["system"], small_files(), packed=False)
    assert data.find("mnist", places["user"]) == places["system"]


@pytest.mark.parametrize("packed", [True, False])
def test_loads_the_arrays(places: dict[str, Path], packed: bool):
    write_files(places["user"] / "mnist", small_files(), packed)
    images = data.load("mnist", places["user"])
    assert images.train_images_NHW.shape == (240, 28, 28)
    assert images.test_images_NHW.shape == (40, 28, 28)
    np.testing.assert_array_equal(images.train_labels_N, np.arange(240) % 10)
    np.testing.assert_array_equal(images.test_labels_N, np.arange(40) % 10)


def test_other_data_under_the_same_names_is_refused(places: dict[str, Path]):
    files = small_files()
    name = "t10k-labels-idx1-ubyte"
    files[name] = files[name][:-1] + b"\x07"
    write_files(places["user"] / "mnist", files, packed=True)
    with pytest.raises(DataError, match=rf"{name}.*not the published data"):
        data.load("mnist", places["user"])


def test_downloads_from_the_first_mirror_that_works(places: dict[str, Path]):
    write_files(places["mirror"], small_files(), packed=True)
    found = data.find("mnist", None)
    assert found == places["cache"] / "kogata/data/mnist"
    assert sorted(path.name for path in found.iterdir()) == sorted(f"{name}.gz" for name in small_files())
    assert len(data.load("mnist", None).test_labels_N) == 40


def test_a_tampered_download_is_not_kept(places: dict[str, Path]):
    files = small_files()
    name = "train-labels-idx1-ubyte"
    files[name] = files[name][:-1] + b"\x07"
    write_files(places["mirror"], files, packed=True)
    with pytest.raises(DataError, match="not the published data"):
        data.find("mnist", None)
    kept = [path.name for path in (places["cache"] / "kogata/data/mnist").iterdir()]
    assert kept == ["train-images-idx3-ubyte.gz"], "the good file is kept, the bad one and its temporary folder are not"


def test_an_oversized_download_is_refused(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    write_files(places["mirror"], small_files(), packed=True)
    monkeypatch.setattr(data, "DOWNLOAD_BYTES", 10)
    with pytest.raises(DataError, match="larger than the limit of 10"):
        data.find("mnist", None)


def test_what_is_said_when_there_is_no_data(places: dict[str, Path]):
    write_files(places["user"] / "mnist", {"train-images-idx3-ubyte": b""}, packed=True)
    with pytest.raises(DataError) as caught:
        data.find("mnist", places["user"])
    message = str(caught.value)
    for part in (
        f"{places['user'] / 'mnist'}: no train-labels-idx1-ubyte, no t10k-images-idx3-ubyte, no t10k-labels-idx1-ubyte",
        f"{places['system']}: no such folder",
        f"{places['cache'] / 'kogata/data/mnist'}",
        "--data DIR or KOGATA_DATA=DIR",
        "DIR/mnist/{train-images-idx3-ubyte,",
        "sudo apt-get install dataset-mnist",
        "dead: <urlopen error",
        "mirror: <urlopen error",
    ):
        assert part in message


def test_checksums_are_of_the_decompressed_content(places: dict[str, Path]):
    write_files(places["user"] / "mnist", small_files(), packed=True)
    for path in (places["user"] / "mnist").iterdir():
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1))
    assert len(data.load("mnist", places["user"]).train_labels_N) == 240


def test_the_real_fashion_mnist_where_the_system_package_is_installed():
    system = Path("/usr/share/datasets/fashion-mnist")
    if not system.is_dir():
        pytest.skip("the system package dataset-fashion-mnist is not installed")
    images = data.load("fashion-mnist", None)
    assert np.bincount(images.train_labels_N).tolist() == [6000] * 10
    assert np.bincount(images.test_labels_N).tolist() == [1000] * 10
