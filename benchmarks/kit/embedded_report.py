"""What the stage `embedded` found, for the page. Uses the standard library only."""

from collections.abc import Mapping
from typing import Any

from benchmarks.gpu.markdown import table


def _shown(probability: float | None) -> str:
    """A probability; one that JSON could not hold is said to be none."""
    return "not finite" if probability is None else f"{probability:.3f}"


def embedded_section(_: str, found: Mapping[str, Any]) -> str:
    """Answers beside Python's, and requests per second."""
    parts = [f"## Programs in C++\n\nRan {found.get('runs', 'nothing')}."]
    if answers := found.get("answers"):
        rows = [
            (_shown(entry["program"]), _shown(entry["python"]), entry["tokens"], "yes" if entry["equal"] else "**no**")
            for entry in answers
        ]
        parts.append(table(("probability of true: program", "Python", "tokens", "equal"), rows))
    if rates := found.get("requests_per_second"):
        rows = [(batch, f"{rate:.1f}") for batch, rate in rates.items()]
        parts.append(table(("batch", f"requests per second of {found['threads']} threads"), rows))
    return "\n\n".join(parts)
