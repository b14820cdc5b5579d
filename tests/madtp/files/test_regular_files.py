"""Whatever a user or a manifest names is a regular file of a bearable size, or refused at once: nothing hangs."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from export.artifact.files import MOST_BYTES
from export.errors import ManifestError
from export.evaluate.journal import Journal
from export.session.session import Session
from madtp.data.synthetic import synthetic_samples
from madtp.errors import InputError, MadtpError
from tests.helpers.command_line import Ran
from tests.helpers.manifests import edit_manifest
from tests.helpers.paths import ROOT
from tests.helpers.sizes import BASE

SECONDS = 60  # until what waits for ever is given up


def ended(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process of its own; one that hangs fails the test, not the suite."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=SECONDS, check=False)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)


@pytest.mark.parametrize("kind", [pipe, device, sparse])
@pytest.mark.parametrize("name", ["out.onnx", "out.json"])
def test_artifacts_and_manifests(name: str, kind: Callable[[Path], None], exported: tuple[Path, Path]) -> None:
    artifact, checkpoint = exported
    artifact.with_name(name).unlink()
    kind(artifact.with_name(name))
    for arguments in (
        ("inspect", artifact.with_name(name)),
        ("inspect", artifact.with_suffix(".json")),
        ("run", artifact, "--image", "a.png", "--image", "b.png", "--text", "x"),
        ("validate", "--engine", artifact, "--ckpt", checkpoint),
    ):
        ran = ended(*arguments)
        assert ran.returncode in (1, 2), ran
        assert "Traceback" not in ran.stderr, ran
    with pytest.raises(ManifestError):
        Session(artifact)


@pytest.mark.parametrize("kind", [pipe, device, sparse])
def test_what_options_name(
    kind: Callable[[Path], None], exported: tuple[Path, Path], tmp_path: Path, run_cli: Callable[..., Ran]
) -> None:
    artifact, checkpoint = exported
    path = tmp_path / "odd"
    kind(path)
    for arguments in (
        ("check", "--ckpt", checkpoint, "--engine", tmp_path / "out.plan", "--plugins", path),
        ("check", "--ckpt", checkpoint, "--engine", tmp_path / "out.plan", "--tokens", path),
        ("check", "--ckpt", checkpoint, "--engine", tmp_path / "out.onnx", "--config", path),
        ("bench", artifact, "--against", path),
        ("report", artifact, "--bench", path, "-o", tmp_path / "page.html"),
    ):
        ran = ended(*arguments)
        assert ran.returncode == 2, ran
        assert "Traceback" not in ran.stderr, ran


@pytest.mark.parametrize("kind", [pipe, device, sparse])
def test_journals(kind: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "results.json.part"
    kind(path)
    with pytest.raises(MadtpError, match=r"holds no results|not a regular file"):
        Journal(path, {})


def test_sizes_that_a_manifest_claims_are_not_believed(exported: tuple[Path, Path]) -> None:
    artifact, _ = exported
    with pytest.raises(InputError, match="synthetic samples take"):
        synthetic_samples(BASE, 2**31 - 1, (2, 8))
    edit_manifest(artifact.with_suffix(".json"), lambda manifest: manifest["config"].update(image_size=2**20))
    with pytest.raises(ManifestError, match="malformed"):
        Session(artifact)
