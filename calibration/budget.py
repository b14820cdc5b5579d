"""Budgets: what a request may cost."""

import math
import re
from dataclasses import dataclass

from madtp.errors import InputError

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_DURATION = re.compile(r"\s*([0-9.eE+-]+)\s*(s|ms|us)\s*")


@dataclass(frozen=True)
class Budget:
    """What a request may cost, on average.

    Attributes:
        kind: "gflops" (GFLOPs), "reduction" (share of the dense model's GFLOPs that is saved) or "latency" (seconds).
    """

    kind: str
    value: float

    @property
    def unit(self) -> str:
        """Of `cost`."""
        return "ms" if self.kind == "latency" else "GFLOPs"

    def cost(self, dense: float) -> float:
        """In GFLOPs, or milliseconds of a latency; `dense` is what the dense model costs."""
        if self.kind == "latency":
            return 1e3 * self.value
        return self.value if self.kind == "gflops" else (1 - self.value) * dense

    def __str__(self) -> str:
        if self.kind == "latency":
            return f"{1e3 * self.value:g} ms"
        return (
            f"{self.value:g} GFLOPs" if self.kind == "gflops" else f"{100 * self.value:.4g} % fewer GFLOPs than dense"
        )


def choose_budget(gflops: float | None, reduction: float | None, latency: str | None) -> Budget:
    """The one that is given.

    Raises:
        InputError: none or several, or no positive number.
    """
    given = [option for option in (gflops, reduction, latency) if option is not None]
    if len(given) != 1:
        raise InputError(
            f"{len(given) or 'no'} budgets are given",
            "A temperature is looked for that meets one.",
            "Give --gflops 26.5, --reduction 0.8 or --latency 3ms.",
        )
    if latency is not None:
        return Budget("latency", parse_duration(latency, "--latency"))
    if gflops is not None:
        if not 0 < gflops < math.inf:
            raise InputError(f"--gflops is {gflops:g}", "A request costs something.", "Give a number of GFLOPs.")
        return Budget("gflops", gflops)
    assert reduction is not None
    if not 0 < reduction < 1:
        raise InputError(
            f"--reduction is {reduction:g}",
            "It is the share of the dense model's GFLOPs that is saved.",
            "Give a number between 0 and 1, e.g. 0.8 for 80 % fewer.",
        )
    return Budget("reduction", reduction)


def parse_duration(text: str, option: str) -> float:
    """Seconds of "3ms", "0.5s" or "250us".

    Raises:
        InputError: anything else.
    """
    found = _DURATION.fullmatch(text)
    try:
        seconds = float(found[1]) * UNITS[found[2]] if found else math.nan
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InputError(f"{option} is '{text}'", "It has to be a duration with its unit.", "Use e.g. 3ms or 0.5s.")
    return seconds
