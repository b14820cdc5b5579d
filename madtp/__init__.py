"""MADTP vision-language models in PyTorch: encoders with dynamic token pruning, checkpoints, training, FLOPs."""

import importlib
from typing import TYPE_CHECKING, Any

from madtp.errors import CheckpointError, ConfigError, InputError, MadtpError

if TYPE_CHECKING:
    from madtp.checkpoint.loading import load
    from madtp.models.config import NlvrConfig
    from madtp.models.nlvr import NlvrModel, NlvrOutput

__all__ = [
    "CheckpointError",
    "ConfigError",
    "InputError",
    "MadtpError",
    "NlvrConfig",
    "NlvrModel",
    "NlvrOutput",
    "load",
]

_MODULES = {
    "NlvrConfig": "madtp.models.config",
    "NlvrModel": "madtp.models.nlvr",
    "NlvrOutput": "madtp.models.nlvr",
    "load": "madtp.checkpoint.loading",
}
_PACKAGES = frozenset({"checkpoint", "data", "models", "ops", "tasks", "training"})


def __getattr__(name: str) -> Any:
    """Import what needs torch on first use: torch takes seconds to import, and command lines must not wait for it."""
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
