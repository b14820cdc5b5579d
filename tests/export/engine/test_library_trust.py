"""A library is code: what is loaded was looked at first, and is of this project and version."""

import json
import os
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export.artifact.manifest import LibraryEntry, Plugins
from export.engine.backends import Backend
from export.engine.plugin_library import check_embedded, loadable_library, read_library
from export.engine.worker import PluginMismatchError, load_plugins
from export.errors import PluginError
from export.runtime.artifact import Artifact
from export.runtime.plan_runner import register_plugins
from madtp.ops.kernels import register_kernels
from madtp.ops.library import KernelError
from tests.helpers.manifests import recorded_manifest

VERSION = metadata.version("madtp-deploy")
ELF = b"\x7fELF..."


def line(version: str = VERSION, source: str = "c" * 64, sm: str = "80,89") -> bytes:
    return b"madtp-plugins " + json.dumps({"version": version, "source": source, "sm": sm}).encode() + b"\0"


STRANGERS = {
    "no build line": (ELF, "is not a plugin library of this project"),
    "no library": (line(), "is not a plugin library of this project"),
    "another version": (ELF + line("0.0.9"), r"of version 0\.0\.9"),
    "two build lines": (ELF + line() + line(sm="90"), "is not a plugin library of this project"),
    "a line that is no JSON": (ELF + b"madtp-plugins {nonsense}\0", "is not a plugin library of this project"),
}


class Registry:
    """TensorRT's, as far as loading goes; remembers what was loaded."""

    def __init__(self) -> None:
        self.loaded: list[str] = []

    @property
    def all_creators(self) -> list[Any]:
        return []

    def load_library(self, path: str) -> object:
        self.loaded.append(path)
        return object()


@pytest.fixture
def registry() -> Registry:
    return Registry()


def tensorrt(registry: Registry) -> Any:
    return SimpleNamespace(get_plugin_registry=lambda: registry)


@pytest.mark.parametrize(("content", "message"), STRANGERS.values(), ids=STRANGERS)
def test_a_strangers_library_is_never_loaded(
    content: bytes, message: str, registry: Registry, tmp_path: Path, run_cli: Any, tiny_checkpoint: Any
) -> None:
    path = tmp_path / "out.plugins.so"
    path.write_bytes(content)
    with pytest.raises(PluginError, match=message):
        register_plugins(tensorrt(registry), path)
    with pytest.raises(PluginMismatchError, match=message):
        load_plugins(tensorrt(registry), str(path))
    ran = run_cli("--ckpt", tiny_checkpoint(), "--engine", tmp_path / "new.plan", "--plugins", path)
    ran.refused("plugin library")
    assert not registry.loaded


def test_the_library_of_this_version_is_loaded_by_its_whole_path(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out.plugins.so").write_bytes(ELF + line())
    monkeypatch.chdir(tmp_path)  # TensorRT would search for a bare name elsewhere
    register_plugins(tensorrt(registry), Path("out.plugins.so"))
    assert registry.loaded == [str(tmp_path / "out.plugins.so")]


def test_a_library_from_before_margins_is_refused_for_one(run_cli: Any, tiny_checkpoint: Any, tmp_path: Path) -> None:
    """TensorRT would not pass it the margin, and it would prune without."""
    path = tmp_path / "old.so"
    path.write_bytes(ELF + line())
    given = ("check", "--ckpt", tiny_checkpoint(), "--engine", tmp_path / "new.plan", "--plugins", path)
    run_cli(*given, "--keep-margin", 0.1).refused("knows no keep margin", "./build.sh plugins")
    path.write_bytes(ELF + line() + b"keep_margin\0")
    assert run_cli(*given, "--keep-margin", 0.1).status == 0


def test_library_and_manifest_have_to_agree(tmp_path: Path) -> None:
    path = tmp_path / "out.plugins.so"
    path.write_bytes(ELF + line())
    entry = read_library(path).entry(path.name)
    assert loadable_library(path, entry).sm == (80, 89)
    for key, value in {"sha256": "0" * 64, "version": "9", "source_sha256": "d" * 64, "sm": (90,)}.items():
        with pytest.raises(PluginError, match=rf"Its {key} is .*, the manifest's"):
            loadable_library(path, replace(entry, **{key: value}))


def artifact(folder: Path, library: bytes, embedded: bool, plan: bytes = b"plan", layers: int = 1) -> Artifact:
    """One plan, as far as opening its parts reads it."""
    (folder / "out.plan").write_bytes(plan)
    (folder / "out.plugins.so").write_bytes(library)
    file = None if embedded else "out.plugins.so"
    entry = LibraryEntry(file, embedded, VERSION, sha256="0" * 64, source_sha256="c" * 64, sm=(80, 89))
    manifest = recorded_manifest()
    part = replace(manifest.parts[0], artifact="out.plan", plugin_layers={"TokenCompact": layers} if layers else {})
    manifest = replace(manifest, artifact="out.plan", parts=(part,), plugins=Plugins("library", entry))
    return Artifact(folder / "out.json", manifest, Backend("tensorrt", "10", "", can_run=True))


@pytest.mark.parametrize("embedded", [False, True])
def test_an_artifact_is_opened_after_its_library_was_looked_at(
    embedded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.runtime.artifact.PlanRunner", lambda *given: pytest.fail("the plan was opened"))
    with pytest.raises(PluginError, match="that the manifest describes"):
        artifact(tmp_path, ELF + line(), embedded).open_runners()


def test_only_plans_that_carry_the_library_may_bring_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[bool] = []
    monkeypatch.setattr(
        "export.runtime.artifact.PlanRunner", lambda path, backend, library, allow, options: allowed.append(allow)
    )
    for layers in (1, 0):
        artifact(tmp_path, b"", embedded=True, plan=b"plan" + line() + b"more", layers=layers).open_runners()
    assert allowed == [True, False]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (b"plan", "does not embed"),
        (b"plan" + line("0.0.9"), r"of version 0\.0\.9"),
        (b"plan" + line(source="d" * 64), "does not embed"),
        (b"plan" + line() + line(sm="75"), "does not embed"),
    ],
)
def test_an_embedded_library_is_the_one_of_the_manifest(plan: bytes, message: str, tmp_path: Path) -> None:
    entry = artifact(tmp_path, b"", embedded=True, plan=plan).manifest.plugins.library
    assert entry is not None
    with pytest.raises(PluginError, match=message):
        check_embedded(tmp_path / "out.plan", entry)


def test_pipes_are_no_libraries(tmp_path: Path, registry: Registry) -> None:
    os.mkfifo(tmp_path / "pipe.so")
    with pytest.raises(PluginError, match="It is a pipe"):
        register_plugins(tensorrt(registry), tmp_path / "pipe.so")
    with pytest.raises(KernelError, match="is missing"):
        register_kernels(tmp_path / "pipe.so")
    assert not registry.loaded


def test_kernels_are_looked_for_before_a_library_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda path: pytest.fail("it was loaded"))
    path = tmp_path / "libmadtp_kernels.so"
    for content in (b"no library", ELF, ELF + b"madtp_aligned_attention\0"):
        path.write_bytes(content)
        with pytest.raises(KernelError, match="cannot be loaded"):
            register_kernels(path)
