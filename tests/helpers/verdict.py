"""Result of a comparison with a recording."""

from dataclasses import dataclass, field


@dataclass
class Verdict:
    """Comparison of one case: the worst difference of any output, and every mismatch in words."""

    worst: float = 0.0
    mismatches: list[str] = field(default_factory=list)
