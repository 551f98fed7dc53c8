"""Names that go: the warning, where it points, and that the name still works."""

import subprocess
import sys
import types
import warnings

import pytest

from kogata._deprecated import Deprecation, deprecated, deprecated_attributes

OLD = Deprecation(name="kogata.old", use="kogata.new", since="0.2", gone="0.3")
MESSAGE = "kogata.old is deprecated since kogata 0.2 and goes in 0.3; use kogata.new instead."


def test_a_function_warns_its_caller_and_works() -> None:
    @deprecated(OLD)
    def old(x: int, *, times: int = 2) -> int:
        """Multiply."""
        return x * times

    with pytest.warns(DeprecationWarning, match="kogata.old is deprecated") as caught:
        assert old(4, times=3) == 12
    assert [str(warning.message) for warning in caught] == [MESSAGE]
    assert caught[0].filename == __file__, "the line to change is the caller's"
    assert (old.__name__, old.__doc__) == ("old", "Multiply.")


def test_defining_a_function_warns_nobody() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deprecated(OLD)(len)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module that can be imported, with one attribute of its own and one that goes."""
    made = types.ModuleType("kogata_test_module")
    made.new = 5  # type: ignore[attr-defined]
    made.__getattr__ = deprecated_attributes(made.__name__, {"old": (OLD, lambda: made.new)})  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


def test_an_attribute_of_a_module_warns_and_is_there(module: types.ModuleType) -> None:
    with pytest.warns(DeprecationWarning, match="kogata.old is deprecated") as caught:
        assert module.old == 5
    assert [str(warning.message) for warning in caught] == [MESSAGE]
    assert caught[0].filename == __file__


def test_importing_an_attribute_warns(module: types.ModuleType) -> None:
    with pytest.warns(DeprecationWarning, match="kogata.old is deprecated") as caught:
        from kogata_test_module import old  # type: ignore[import-not-found]
    assert old == 5
    assert {warning.filename for warning in caught} == {__file__}


def test_other_attributes_are_as_ever(module: types.ModuleType) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert module.new == 5
        with pytest.raises(AttributeError, match="module 'kogata_test_module' has no attribute 'older'"):
            _ = module.older
        assert not hasattr(module, "older")


@pytest.mark.parametrize(("since", "gone"), [("0.2", "0.2"), ("0.2.0", "0.2.5"), ("0.3", "0.2"), ("2.0", "1.9")])
def test_a_name_must_warn_for_a_minor_version(since: str, gone: str) -> None:
    with pytest.raises(ValueError, match=f"warns since {since}"):
        Deprecation(name="kogata.old", use="kogata.new", since=since, gone=gone)


@pytest.mark.parametrize(("since", "gone"), [("0.2", "0.3"), ("0.9", "0.10"), ("0.2.1", "0.3.0"), ("1.4", "2.0")])
def test_a_name_may_go_a_minor_version_later(since: str, gone: str) -> None:
    assert Deprecation(name="kogata.old", use="kogata.new", since=since, gone=gone).message.endswith(
        f"since kogata {since} and goes in {gone}; use kogata.new instead."
    )


def test_it_needs_no_torch() -> None:
    program = "import kogata._deprecated, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
