"""How numbers are said, the same in tables, Markdown, JUnit, JSON and pages; those that mean nothing are not."""

from export.bench.latency import NOISY, TOO_NOISY
from export.bench.statistics import Ratio
from export.bench.verdict import Outcome, Verdict

TOO_FEW = "undecided: too few calls"
SIGNS = {Outcome.PASS: "passed", Outcome.FAIL: "FAILED", Outcome.UNDECIDED: "undecided"}


def milliseconds(value: float) -> str:
    """A latency; every p50 is the median of wall-clock times, said with two digits."""
    return f"{value:.2f}"


def known(relative_half_width: float) -> str:
    """How well a median is known."""
    if relative_half_width == float("inf"):
        return "too few calls"
    low, high = 1 - relative_half_width, 1 + relative_half_width
    return "too noisy" if high > NOISY * low else f"± {100 * relative_half_width:.1f} %"


def floor(noise_floor: float) -> str:
    """By how much a machine drifts; 0 where both artifacts ran side by side."""
    if noise_floor == float("inf"):
        return "too few calls"
    if noise_floor > NOISY - 1:
        return "too noisy"
    return f"{100 * noise_floor:.1f} %" if noise_floor else "paired"


def times(speed_up: Ratio, dense: float, pruned: float) -> str:
    """A speed-up with its interval; undecided where it may as well be none, or the p50s beside it say the opposite."""
    if speed_up.is_unknown:
        return TOO_FEW
    if speed_up.says_nothing or speed_up.contradicted_by(dense, pruned):
        return TOO_NOISY
    interval = f"({speed_up.low:.2f} to {speed_up.high:.2f})"
    return f"undecided {interval}" if speed_up.may_be_none else f"{speed_up.ratio:.2f}x {interval}"


def sign(verdict: Verdict) -> str:
    """Passed, failed, undecided, or undecided because the numbers mean nothing, and why."""
    if not verdict.too_noisy:
        return SIGNS[verdict.outcome]
    return TOO_FEW if verdict.slowdown.is_unknown else TOO_NOISY


def percent(ratio: float) -> str:
    """A slow-down."""
    return f"{100 * (ratio - 1):+.1f} %"


def bounds(slowdown: Ratio) -> str:
    """The interval of a slow-down."""
    return f"{percent(slowdown.low)} to {percent(slowdown.high)}"


def sentence(verdict: Verdict) -> str:
    """What became of a case, and the slow-down that this rests on, if it means anything."""
    allowed = f"allowed {100 * verdict.allowed:g} %"
    if verdict.too_noisy:
        return f"{sign(verdict)}; {allowed}"
    slowdown = verdict.slowdown
    return f"{SIGNS[verdict.outcome]}: {percent(slowdown.ratio)} ({bounds(slowdown)}), {allowed}"
