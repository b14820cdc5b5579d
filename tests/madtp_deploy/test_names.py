"""The public names, under the one name that no module of a user has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import export
import madtp
import madtp_deploy
from tests.helpers.paths import ROOT


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a folder whose modules come first, as for a script in it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with modules of names that ours and our libraries have too."""
    for name in ("export", "madtp", "calibration", "torch", "click"):
        (tmp_path / f"{name}.py").write_text(f"print('the file {name}.py ran')\n")
    return tmp_path


def test_every_name_is_the_one_of_its_package() -> None:
    for name in madtp_deploy.__all__:
        assert getattr(madtp_deploy, name) is getattr(madtp if name in madtp.__all__ else export, name)
    assert set(export.__all__) <= set(madtp_deploy.__all__)


def test_the_names_are_ours_beside_modules_of_the_same_names(hostile: Path) -> None:
    for name in ("torch", "click"):
        (hostile / f"{name}.py").unlink()
    ran = python(hostile, "-c", "import madtp_deploy\nprint(madtp_deploy.ExportOptions.__module__)")
    assert (ran.returncode, ran.stdout) == (0, "export.build.options\n"), ran.stderr


def test_a_module_that_took_the_name_first_is_named(hostile: Path) -> None:
    ran = python(hostile, "-c", "import export, madtp_deploy\nmadtp_deploy.Session")
    assert ran.returncode == 1
    assert str(hostile / "export.py") in ran.stderr.splitlines()[-1]


def test_the_command_line_imports_nothing_from_where_it_is_started(hostile: Path) -> None:
    ran = python(hostile, "-m", "madtp_deploy", "--version")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("madtp-deploy ")
