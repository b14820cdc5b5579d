"""The packages that Python can import on a user's GPU machine without a package index or our environment.

`python -m tests.helpers.bare_machine ARGUMENTS` runs pytest as if nothing else were installed here.
"""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

OURS = {"benchmarks", "calibration", "export", "madtp", "tests"}
INSTALLED = {
    *("torch", "torchgen", "functorch", "triton"),
    *("sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock", "fsspec", "typing_extensions"),  # torch's
    *("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments"),
    *("numpy", "PIL", "tokenizers"),
    *("onnx", "onnxruntime", "google", "ml_dtypes", "flatbuffers"),
    *("pynvml", "cuda", "cmake", "ninja"),
}
CARRIED = {"hypothesis", "_hypothesis_globals", "_hypothesis_pytestplugin", "sortedcontainers", "safetensors", "click"}
IMPORTABLE = OURS | INSTALLED | CARRIED | sys.stdlib_module_names


class BareFinder(PathFinder):
    """Finds the modules of a bare machine; everything else does not exist."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        known = fullname.partition(".")[0] in IMPORTABLE
        return super().find_spec(fullname, path, target) if known else None


def hide_the_rest() -> None:
    """From now on this process can import nothing else; imported modules stay."""
    sys.meta_path[:] = [BareFinder if finder is PathFinder else finder for finder in sys.meta_path]


def main() -> int:
    """Run pytest; return its exit status."""
    hide_the_rest()
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # xdist and others
    import pytest

    return pytest.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
