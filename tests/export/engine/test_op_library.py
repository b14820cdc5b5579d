"""The op library of ONNX Runtime is code too: what is loaded was looked at first."""

import json
from pathlib import Path

import pytest

from export.engine.op_library import OP_LIBRARY, installed_library, loadable_op_library, read_op_library
from export.errors import PluginError
from madtp.files import native
from tests.helpers.op_library import OWN_VERSION, stand_in

PLUGINS = b"\x7fELF madtp-plugins " + json.dumps({"version": OWN_VERSION, "source": "c", "sm": "80"}).encode() + b"\0"


def test_its_line_says_what_it_is(tmp_path: Path) -> None:
    library = read_op_library(stand_in(tmp_path / OP_LIBRARY.file, "1.2.3", "abc", "80,120"))
    assert (library.version, library.source_sha256, library.sm) == ("1.2.3", "abc", (80, 120))
    assert str(library) == "libmadtp_onnxruntime.so 1.2.3"


def test_a_library_for_cpus_has_no_architectures(tmp_path: Path) -> None:
    path = stand_in(tmp_path / OP_LIBRARY.file, sm="")
    assert loadable_op_library(path).sm == ()
    with pytest.raises(PluginError, match="has kernels for CPUs alone") as caught:
        loadable_op_library(path, "cuda")
    assert "--provider cpu" in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"version": "0.0.9"}, r"of version 0\.0\.9"),
        ({"source": "d" * 64}, "is of another build"),
        ({"source": "unknown"}, "is of another build"),
        ({"sm": "eighty"}, "is not an op library of this project"),
    ],
)
def test_another_library_is_refused_by_name(changed: dict[str, str], message: str, tmp_path: Path) -> None:
    path = stand_in(tmp_path / "theirs.so", **changed)
    with pytest.raises(PluginError, match=message) as caught:
        loadable_op_library(path)
    assert str(path) in str(caught.value)


def test_a_plugin_library_is_none(tmp_path: Path) -> None:
    (tmp_path / "libmadtp_plugins.so").write_bytes(PLUGINS)
    with pytest.raises(PluginError, match="is not an op library of this project"):
        read_op_library(tmp_path / "libmadtp_plugins.so")


def test_a_missing_one_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="cannot read the op library"):
        read_op_library(tmp_path / "nowhere.so")


def test_without_an_installed_one_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / OP_LIBRARY.file
    monkeypatch.setattr(native, "installed_library", lambda name: tmp_path / name)
    assert installed_library() is None
    stand_in(path)
    assert installed_library() == path
