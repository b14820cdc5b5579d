"""Where the sources of the native libraries lie, and the libraries built from them.

A checkout compiles `plugins/` in `build/plugins` and installs into `install/`. An installed package carries the sources
(`setup.py` puts them into `madtp/native/`) and, in a wheel made by `./build.sh wheel`, the libraries. What it compiles
itself lies in the user's cache. `setup.py` runs this file, so it imports the standard library alone.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

CARRIED = Path(__file__).resolve().parents[1] / "native"  # in an installed package, never in a checkout
IS_PACKAGE = CARRIED.is_dir()
CHECKOUT = CARRIED.parents[1]
SOURCES = CARRIED / "sources" if IS_PACKAGE else CHECKOUT / "plugins"
CARRIED_INSTALL = CARRIED / "install"  # laid out like install/ of a checkout, and as relocatable
STAMP = "madtp-plugins.json"  # in an installation: what its libraries were made from
RUNTIME_STAMP = "madtp-runtime.json"  # likewise, of the engine for C and C++
KERNELS_NAME = "libmadtp_kernels.so"
DEFAULT_SM = (75, 80, 86, 89, 90, 120)  # compute capabilities of the usual GPUs, without the dot
SOURCE_SUFFIXES = {".cu", ".cpp", ".h", ".hpp", ".txt", ".map", ".in", ".cmake"}
RUNTIME, EXAMPLES = "runtime", "examples"  # folders that no library of kernels is made from
BUILD_COMMAND = "python -m export.engine.plugin_build" if IS_PACKAGE else "./build.sh plugins"
GET_COMPILER = "pip install 'madtp-deploy[compile]'" if IS_PACKAGE else "Run ./build.sh env"


def source_hash(sources: Path = SOURCES) -> str:
    """Hash of everything that is compiled into the libraries of kernels and plugins."""
    return _hash(sources, lambda path: path.parts[0] not in (RUNTIME, EXAMPLES))


def runtime_hash(sources: Path = SOURCES) -> str:
    """Hash of everything that the engine for C and C++ is compiled from, and installed with."""
    return _hash(sources, lambda path: path.parts[0] in (RUNTIME, "third_party") or path.suffix in (".cmake", ".in"))


def _hash(sources: Path, is_part: Callable[[Path], bool]) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in sources.rglob("*") if path.suffix in SOURCE_SUFFIXES):
        name = path.relative_to(sources)
        if is_part(name):
            digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def cache_folder() -> Path:
    """The user's folder for what this project compiles, which may not exist: in XDG_CACHE_HOME, else in ~/.cache."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The standard ignores a relative one. Without a home "~" stays, and "/~" is a folder that nobody can make.
    base = Path(given) if os.path.isabs(given) else Path("/", os.path.expanduser("~"), ".cache")
    return base / "madtp-deploy"


def cached_build(source: str, sm: Iterable[int]) -> Path:
    """The cache's folder for libraries of these sources and compute capabilities."""
    return cache_folder() / f"{source[:16]}-sm-{'-'.join(map(str, sm))}"


def installed_library(name: str) -> Path:
    """Where the library `name` is installed: with the package, else by the latest build in the cache.

    It may be missing; the path then says where it was looked for.
    """
    if not IS_PACKAGE:
        return CHECKOUT / "install" / "lib" / name
    carried = CARRIED_INSTALL / "lib" / name
    if carried.is_file():
        return carried
    built = cache_folder().glob(f"{source_hash()[:16]}-sm-*/install/{STAMP}")  # a build without a stamp was cut short
    found = [path.parent / "lib" / name for path in sorted(built, key=lambda path: path.stat().st_mtime, reverse=True)]
    return next((path for path in found if path.is_file()), carried)
