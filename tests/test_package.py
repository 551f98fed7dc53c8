"""What goes into the wheel: the code and the small files it reads, nothing large."""

import tomllib
import zipfile
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).parent.parent
KINDS = {".py", ".yaml", ".j2", ".typed"}
LIMIT = 600_000  # bytes


def test_the_wheel_is_small_and_holds_no_data() -> None:
    """By what the build is told to pack, so that the test needs neither the build tool nor a network."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    settings = build["targets"]["wheel"]
    assert settings == {"packages": ["src/kogata"]}, "this test knows what these settings pack; look at it again with others"
    files = [path for path in (ROOT / "src" / "kogata").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path in files:
            wheel.write(path, path.relative_to(ROOT / "src"))
    assert {path.suffix or path.name for path in files} <= KINDS
    assert packed.tell() < LIMIT


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "src" / "kogata" / "py.typed").is_file()


def test_the_networks_of_the_checkout_lie_outside_the_package() -> None:
    assert list((ROOT / "data" / "networks").glob("*.safetensors"))
    assert not list((ROOT / "src").rglob("*.safetensors"))
