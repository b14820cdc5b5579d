"""Numbers in words, the same in tables, Markdown, JUnit, JSON and pages; those that mean nothing are not shown."""

from export.bench.statistics import NOISY, Ratio
from export.bench.verdict import CaseVerdict, Verdict

TOO_FEW = "undecided: too few calls"
TOO_NOISY = "undecided: too noisy"
SIGNS = {Verdict.PASS: "passed", Verdict.FAIL: "FAILED", Verdict.UNDECIDED: "undecided"}


def milliseconds(value: float) -> str:
    """A latency, with two digits."""
    return f"{value:.2f}"


def half_width(relative: float | None) -> str:
    """The confidence interval of a median: half its width over the median, None if that is unknown."""
    if relative is None:
        return "too few calls"
    low, high = 1 - relative, 1 + relative
    return "too noisy" if high > NOISY * low else f"± {100 * relative:.1f} %"


def floor(noise_floor: float) -> str:
    """A noise floor; it is 0 where both artifacts ran side by side."""
    if noise_floor == float("inf"):
        return "too few calls"
    if noise_floor > NOISY - 1:
        return "too noisy"
    return f"{100 * noise_floor:.1f} %" if noise_floor else "paired"


def times(speed_up: Ratio, dense: float, pruned: float) -> str:
    """A speed-up with its interval; undecided where it may be none, or the p50s beside it say the opposite."""
    if speed_up.is_unknown:
        return TOO_FEW
    if (speed_up.may_be_none and speed_up.is_wide) or speed_up.contradicted_by(dense, pruned):
        return TOO_NOISY
    interval = f"({speed_up.low:.2f} to {speed_up.high:.2f})"
    return f"undecided {interval}" if speed_up.may_be_none else f"{speed_up.ratio:.2f}x {interval}"


def sign(verdict: CaseVerdict) -> str:
    """Passed, failed or undecided; why it is undecided, if the numbers mean nothing."""
    if not verdict.too_noisy:
        return SIGNS[verdict.outcome]
    return TOO_FEW if verdict.slowdown.is_unknown else TOO_NOISY


def percent(ratio: float) -> str:
    """A slow-down."""
    return f"{100 * (ratio - 1):+.1f} %"


def bounds(slowdown: Ratio) -> str:
    """The interval of a slow-down."""
    return f"{percent(slowdown.low)} to {percent(slowdown.high)}"


def sentence(verdict: CaseVerdict) -> str:
    """The verdict on a case, and the slow-down that it rests on, if that means anything."""
    allowed = f"allowed {100 * verdict.allowed:g} %"
    if verdict.too_noisy:
        return f"{sign(verdict)}; {allowed}"
    slowdown = verdict.slowdown
    return f"{SIGNS[verdict.outcome]}: {percent(slowdown.ratio)} ({bounds(slowdown)}), {allowed}"


def ratio(speed_up: Ratio, decided: bool) -> str:
    """A ratio with its interval; undecided where it was not `decided`."""
    if speed_up.is_unknown:
        return TOO_FEW
    if not decided and speed_up.is_wide:
        return TOO_NOISY
    interval = f"({speed_up.low:.2f} to {speed_up.high:.2f})"
    return f"{speed_up.ratio:.2f}x {interval}" if decided else f"undecided {interval}"
