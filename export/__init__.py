"""The pipeline from a trained MADTP checkpoint to a validated engine; `python -m export` is its command line.

`from export import Session` asks an artifact.
"""

from typing import TYPE_CHECKING, Any

from export.runtime import forks as forks  # notes whether torch is there already

if TYPE_CHECKING:
    from export.session.session import Session

__all__ = ["Session"]


def __getattr__(name: str) -> Any:
    """Import `Session` when it is asked for: torch and the runtimes take seconds."""
    if name == "Session":
        from export.session.session import Session

        return Session
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
