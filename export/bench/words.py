"""How numbers are said, the same in tables, Markdown, JUnit, JSON and pages; those that mean nothing are not."""

from export.bench.statistics import Ratio
from export.bench.verdict import Outcome, Verdict

TOO_NOISY = "undecided: too noisy"
TOO_FEW = "undecided: too few calls"
SIGNS = {Outcome.PASS: "passed", Outcome.FAIL: "FAILED", Outcome.UNDECIDED: "undecided"}


def milliseconds(value: float) -> str:
    """A latency; every p50 is the median of wall-clock times, said with two digits."""
    return f"{value:.2f}"


def times(speed_up: Ratio) -> str:
    """A speed-up with its interval; undecided where it may as well be none."""
    if speed_up.high == float("inf"):
        return TOO_FEW
    if speed_up.says_nothing:
        return TOO_NOISY
    interval = f"({speed_up.low:.2f} to {speed_up.high:.2f})"
    return f"undecided {interval}" if speed_up.may_be_none else f"{speed_up.ratio:.2f}x {interval}"


def sign(verdict: Verdict) -> str:
    """Passed, failed, undecided, or undecided because the numbers mean nothing."""
    return TOO_NOISY if verdict.too_noisy else SIGNS[verdict.outcome]


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
        return f"{TOO_NOISY}; {allowed}"
    slowdown = verdict.slowdown
    return f"{SIGNS[verdict.outcome]}: {percent(slowdown.ratio)} ({bounds(slowdown)}), {allowed}"
