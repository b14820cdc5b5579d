"""Where messages of plugins go: to TensorRT's logger, however it is laid out, or to standard error."""

import ctypes
from pathlib import Path

import pytest

from tests.helpers.harness import ERROR, PluginLibrary
from tests.helpers.native_build import build
from tests.helpers.plugin_case import libraries, path_of

REFUSAL = "TokenCompact: field 'layer' is missing"
# As getInferLibVersion says them. The functions of TensorRT 10 and for RTX 1.4 lie elsewhere than their successors'.
PLAIN, VERSIONED = (100000, 101401, 101601, 10000, 10400), (110000, 110402, 120000, 10500, 10701, 20000)
UNTOLD = (0, -1, 8601, 9300)  # none, nonsense, and TensorRT 8 and 9, which know no such plugins

pytestmark = pytest.mark.parametrize("kind", libraries())


def native(finder: Path) -> ctypes.CDLL:
    """One of the libraries of `tests/native/finder.cpp`."""
    loaded = ctypes.CDLL(str(finder))
    loaded.finder_of.restype, loaded.finder_said.restype = ctypes.c_void_p, ctypes.c_char_p
    return loaded


def refusal(kind: str, finder: Path, version: int, has_logger: bool = True) -> str:
    """Make a creator refuse under a finder; what the logger of that finder was told."""
    library, made = PluginLibrary(path_of(kind)), native(finder)
    ctypes.CDLL(str(path_of(kind))).setLoggerFinder(ctypes.c_void_p(made.finder_of(version, has_logger)))
    try:
        assert library.create("TokenCompact", {}) is None
    finally:
        library.use_logger(True)
    return str(made.finder_said().decode())


def test_without_a_finder_messages_go_to_standard_error(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    library = PluginLibrary(path_of(kind))
    library.messages()
    library.use_logger(False)
    try:
        assert library.create("TokenCompact", {}) is None
    finally:
        library.use_logger(True)
    assert REFUSAL in capfd.readouterr().err
    assert library.messages() == []


def test_errors_reach_the_logger_of_every_generation_of_tensorrt(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    for finder, versions in ((build().finder_plain, PLAIN), (build().finder_versioned, VERSIONED)):
        for version in versions:
            assert refusal(kind, finder, version).startswith(f"{ERROR} {REFUSAL}"), version
    assert capfd.readouterr().err == ""


def test_where_no_logger_is_found_messages_go_to_standard_error(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    for finder, version in ((build().finder_plain, 101401), (build().finder_versioned, 110000)):
        assert refusal(kind, finder, version, has_logger=False) == ""
        assert REFUSAL in capfd.readouterr().err


def test_nothing_is_called_of_a_library_that_is_unknown(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert refusal(kind, build().finder_unknown, 0) == ""
    assert REFUSAL in capfd.readouterr().err
    for finder in (build().finder_plain, build().finder_versioned):
        for version in UNTOLD:
            assert refusal(kind, finder, version) == "", version
            assert REFUSAL in capfd.readouterr().err


def test_nothing_is_called_of_an_interface_that_is_unknown(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A later major version of finder or logger may put its functions anywhere."""
    path = build().finder_versioned
    made = native(path)
    for call, right in ((made.finder_calls_itself, b"ILoggerFinder"), (made.finder_calls_its_logger, b"ILogger")):
        for name, major in ((right, 2), (right, 0), (b"IAnything", 1), (None, 1)):
            call(name, major)
            try:
                assert refusal(kind, path, 10701) == "", (name, major)
                assert REFUSAL in capfd.readouterr().err
            finally:
                call(right, 1)
    assert refusal(kind, path, 10701) != ""
