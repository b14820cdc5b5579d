"""Our two packages, built from a copy of the sources, and environments with one of them installed.

An environment sees the packages of this one, but not ours: nothing is downloaded, and no import leads to the checkout.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.paths import ROOT

PACKED = ("madtp", "calibration", "export", "madtp_deploy", "plugins")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "constraints.txt")
OFFLINE = (
    "--quiet",
    "--disable-pip-version-check",
    "--no-index",
    "--no-deps",
    "--no-build-isolation",
    "--no-cache-dir",
)


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command with no environment but this."""
    given = {"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"], **environment}
    return subprocess.run(list(map(str, command)), cwd=cwd, env=given, capture_output=True, text=True, check=False)


def source_distribution(folder: Path) -> Path:
    """Build the .tar.gz in `folder`."""
    sources = folder / "checkout"
    for name in PACKED:
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, sources)
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    done = run(sys.executable, "-P", "-c", build, folder, cwd=sources)
    assert done.returncode == 0, done.stdout + done.stderr
    (package,) = folder.glob("*.tar.gz")
    return package


def wheel(package: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Make a wheel of the source distribution; `environment` as for `setup.py`."""
    return run(
        sys.executable, "-m", "pip", "wheel", *OFFLINE, "--wheel-dir", folder, package, cwd=folder, **environment
    )


@dataclass(frozen=True)
class Environment:
    """A Python environment with one of our packages; `folder` is for the files of commands."""

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "venv" / "bin"

    def run(self, *command: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run one of its programs in the folder of files, where there is no compiler."""
        name, *arguments = command
        nothing = str(self.folder / "nothing")
        given = {"PATH": nothing, "HOME": nothing, "CUDACXX": "no-such-nvcc", **environment}
        return run(self.bin / str(name), *arguments, cwd=self.folder, **given)


def install(package: Path, folder: Path) -> Environment:
    """Install `package`, with pip, into a new environment."""
    environment = Environment(folder)
    venv.create(folder / "venv", with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "venv" / "lib" / version / "site-packages"
    # Added by a .pth file, the .pth files in it are not read: the one of our editable installation.
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = environment.bin / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", *OFFLINE, "--ignore-installed", package)
    done = run(*pip, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return environment
