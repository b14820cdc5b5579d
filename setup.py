"""What pyproject.toml cannot say: the native sources, and built libraries if there are, travel in the package.

Environment variable MADTP_INSTALL: an installation (`install/` after ./build.sh plugins) to carry in a wheel, which is
then one for this platform. `./build.sh wheel` sets it. Without it a wheel carries sources alone.
"""

import json
import os
import runpy
import shutil
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
NATIVE = runpy.run_path(str(ROOT / "madtp" / "files" / "native.py"))  # importing the package needs what it depends on
SOURCES = ROOT / "plugins"
INSTALL = os.environ.get("MADTP_INSTALL")


def check_install(install: Path, version: str) -> None:
    """End with a sentence where an installation is not of these sources, this version and the usual GPUs."""
    try:
        stamp = json.loads((install / NATIVE["STAMP"]).read_text())
        made_from = (stamp["source"], tuple(stamp["sm"]))
        engine = json.loads((install / NATIVE["RUNTIME_STAMP"]).read_text())["source"]
        libraries = {path.name: path.read_bytes() for path in (install / "lib").glob("*.so")}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SystemExit(f"error: MADTP_INSTALL={install} holds no finished build: {error}") from error
    if made_from != (NATIVE["source_hash"](SOURCES), NATIVE["DEFAULT_SM"]):
        raise SystemExit(f"error: MADTP_INSTALL={install} was built from other sources or for other GPUs")
    if engine != NATIVE["runtime_hash"](SOURCES):
        raise SystemExit(f"error: the engine for C and C++ in MADTP_INSTALL={install} was built from other sources")
    if f'"version": "{version}"'.encode() not in libraries.get("libmadtp_plugins.so", b""):
        raise SystemExit(f"error: the libraries in MADTP_INSTALL={install} are not of version {version}")


class BuildWithNative(build_py):
    """Copies `plugins/`, and the installation to carry, into `madtp/native/`."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # a checkout has them
        native = Path(self.build_lib) / "madtp" / "native"
        shutil.rmtree(native, ignore_errors=True)  # of an earlier build
        shutil.copytree(SOURCES, native / "sources")
        if INSTALL:
            check_install(Path(INSTALL), self.distribution.get_version())
            shutil.copytree(INSTALL, native / "install")


class NativeDistribution(Distribution):
    """A distribution that is for one platform if it carries libraries."""

    def has_ext_modules(self) -> bool:
        return bool(INSTALL)


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3: its libraries know nothing of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(distclass=NativeDistribution, cmdclass={"build_py": BuildWithNative, "bdist_wheel": PlatformWheel})
