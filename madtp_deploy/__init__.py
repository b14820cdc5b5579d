"""The public API under one name that is nobody else's: `madtp_deploy.load`, `.export`, `.Session`.

Our packages have plain names (`export`, `madtp`, `calibration`), and a program may stand in a folder with an export.py
of its own. What is taken from here comes from this installation, or fails with a sentence.
"""

import importlib
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export import ExportOptions, ExportResult, Progress, QuantizationOptions, Range, Session, export
    from madtp import MadtpError, load

__all__ = [
    "ExportOptions",
    "ExportResult",
    "MadtpError",
    "Progress",
    "QuantizationOptions",
    "Range",
    "Session",
    "export",
    "load",
]

_HOME = Path(__file__).resolve().parents[1]


def _claim(name: str) -> None:
    """Import the package `name` of this installation, whatever else goes by that name on `sys.path`.

    Raises:
        ImportError: the program has imported another module of that name.
    """
    if name not in sys.modules:
        spec = PathFinder.find_spec(name, [str(_HOME)])
        if spec is None or spec.loader is None:
            raise ImportError(f"madtp-deploy is incomplete: there is no package '{name}' in '{_HOME}'", name=name)
        sys.modules[name] = module = module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    file = getattr(sys.modules[name], "__file__", None)
    if file is None or Path(file).resolve().parents[1] != _HOME:
        raise ImportError(
            f"the module '{name}' of this program is '{file}', and madtp-deploy has one of that name. "
            "Rename yours, or do not import it here.",
            name=name,
            path=file,
        )


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: torch and the runtimes take seconds."""
    if name in __all__:
        for package in ("madtp", "calibration", "export"):
            _claim(package)
        return getattr(importlib.import_module("madtp" if name in ("MadtpError", "load") else "export"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
