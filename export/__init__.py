"""The pipeline from a trained MADTP checkpoint to a validated engine; `python -m export` is its command line.

`export(ExportOptions(...))` exports a checkpoint, `Session` asks an artifact.
"""

import importlib
from typing import TYPE_CHECKING, Any

from export.runtime import forks as forks  # notes whether torch is there already

if TYPE_CHECKING:
    from export.build.options import ExportOptions
    from export.build.pipeline import ExportResult, export
    from export.build.quantization_options import QuantizationOptions
    from export.console import Progress
    from export.engine.range import Range
    from export.session.session import Session

__all__ = ["ExportOptions", "ExportResult", "Progress", "QuantizationOptions", "Range", "Session", "export"]

_MODULES = {
    "ExportOptions": "export.build.options",
    "ExportResult": "export.build.pipeline",
    "Progress": "export.console",
    "QuantizationOptions": "export.build.quantization_options",
    "Range": "export.engine.range",
    "Session": "export.session.session",
    "export": "export.build.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: torch and the runtimes take seconds."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
