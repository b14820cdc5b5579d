"""Artifacts of schema 3, whose manifests have no hash of their own, are used like later ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export import Session
from export.artifact.manifest import SCHEMA_VERSION
from export.artifact.reader import manifest_path, read_manifest
from export.artifact.seal import is_sealed
from export.errors import ManifestError
from madtp.files.inputs import sha256
from tests.helpers.command_line import Ran
from tests.helpers.manifests import SCHEMA_3

Run = Callable[..., Ran]


@pytest.fixture
def artifact(exported: tuple[Path, Path]) -> Path:
    """The tiny artifact under the manifest that an earlier version wrote for one of the same model."""
    path, checkpoint = exported
    content = json.loads(SCHEMA_3.read_text())
    content["checkpoint"] |= {"sha256": sha256(checkpoint), "bytes": checkpoint.stat().st_size}
    (part,) = content["parts"]
    part |= {"sha256": sha256(path), "onnx_sha256": sha256(path), "bytes": path.stat().st_size}
    part["checkpoint_sha256"] = content["checkpoint"]["sha256"]
    manifest_path(path).write_text(json.dumps(content))
    return path


def test_it_is_read_as_schema_4() -> None:
    recorded: dict[str, Any] = json.loads(SCHEMA_3.read_text())
    assert recorded["schema"] == 3
    manifest = read_manifest(SCHEMA_3)
    assert manifest.schema == SCHEMA_VERSION
    assert is_sealed(manifest)
    content = manifest.to_json()
    assert {key: content[key] for key in recorded} == recorded | {"schema": SCHEMA_VERSION}


def test_a_session_opens_it(artifact: Path, samples_folder: Path) -> None:
    with Session(artifact, vocabulary=samples_folder / "vocab.txt") as session:
        assert session.manifest.temperature == session.temperature


def test_run_answers(artifact: Path, samples_folder: Path, run_cli: Run) -> None:
    images = ("--image", samples_folder / "0-left.png", "--image", samples_folder / "0-right.png")
    ran = run_cli("run", artifact, *images, "--text", "a digit", "--vocab", samples_folder / "vocab.txt")
    assert ran.status == 0, ran


def test_bench_times_it(artifact: Path, run_cli: Run) -> None:
    ran = run_cli("bench", artifact, "--seconds", 0.01, "--no-profile")
    assert ran.status == 0, ran


def test_inspect_says_that_it_has_no_hash_of_its_own(artifact: Path, run_cli: Run) -> None:
    ran = run_cli("inspect", artifact, "--json")
    assert ran.status == 0, ran
    shown = json.loads(ran.out)["manifest"]
    assert (shown["schema"], shown["valid"]) == (3, True)
    assert "has no hash" in shown["state"]


def test_validate_writes_schema_4(artifact: Path, run_cli: Run) -> None:
    ran = run_cli(
        "validate", "--engine", artifact, "--ckpt", artifact.with_name("tiny.pt"), "--synthetic", "--limit", 2
    )
    assert ran.status == 0, ran
    content = json.loads(manifest_path(artifact).read_text())
    assert content["schema"] == SCHEMA_VERSION
    assert content["validation"]["verdict"]["status"] == "passed"


def test_its_files_are_checked(artifact: Path) -> None:
    artifact.write_bytes(artifact.read_bytes() + b"0")
    with pytest.raises(ManifestError, match="sha256"):
        Session(artifact)
