"""Whatever a user or a manifest names is a regular file of a bearable size, or refused at once: nothing hangs."""

import json
import os
import re
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
from tests.helpers.manifests import edit_manifest
from tests.helpers.paths import ROOT
from tests.helpers.sizes import BASE

SECONDS = 120  # until what waits for ever is given up


# Command lines in JSON, one after another in one process: starting it takes longer than they do.
RUN_ALL = """
import json, sys
from export.cli.main import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["export", *arguments]
    print("ended", main(), flush=True)
"""


def ended(*command_lines: tuple[object, ...]) -> list[str]:
    """Exit codes of command lines in a process of their own; one that hangs fails the test, not the suite."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    lines = json.dumps([list(map(str, arguments)) for arguments in command_lines])
    command = [sys.executable, "-c", RUN_ALL, lines]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=SECONDS, check=False)
    assert "Traceback" not in ran.stderr, ran.stderr
    codes = re.findall(r"^ended (\d+)$", ran.stdout, re.M)
    assert len(codes) == len(command_lines), ran
    return codes


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
    codes = ended(
        ("inspect", artifact.with_name(name)),
        ("inspect", artifact.with_suffix(".json")),
        ("run", artifact, "--image", "a.png", "--image", "b.png", "--text", "x"),
        ("validate", "--engine", artifact, "--ckpt", checkpoint),
    )
    assert set(codes) <= {"1", "2"}
    with pytest.raises(ManifestError):
        Session(artifact)


@pytest.mark.parametrize("kind", [pipe, device, sparse])
def test_what_options_name(kind: Callable[[Path], None], exported: tuple[Path, Path], tmp_path: Path) -> None:
    artifact, checkpoint = exported
    path = tmp_path / "odd"
    kind(path)
    codes = ended(
        ("check", "--ckpt", checkpoint, "--engine", tmp_path / "out.plan", "--plugins", path),
        ("check", "--ckpt", checkpoint, "--engine", tmp_path / "out.plan", "--tokens", path),
        ("check", "--ckpt", checkpoint, "--engine", tmp_path / "out.onnx", "--config", path),
        ("bench", artifact, "--against", path),
        ("report", artifact, "--bench", path, "-o", tmp_path / "page.html"),
    )
    assert set(codes) == {"2"}


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
