"""Is it slower? Yes, no, or not to be told from what was measured."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from export.bench.calls import Case
from export.bench.statistics import Ratio
from export.errors import OptionError


class Outcome(StrEnum):
    """Of a comparison."""

    PASS = "pass"
    FAIL = "fail"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Verdict:
    """What became of one case.

    Attributes:
        case: temperature and batch.
        outcome: passed, failed or undecided.
        slowdown: how many times longer a call takes than in the baseline, with the bounds that the outcome rests on.
        allowed: the slow-down that passes, 0.05 for 5 %.
        noise_floor: by how much the bounds were moved apart, 0 where both artifacts ran side by side.
        p50: wall-clock milliseconds of a call then and now; None where that was not given.
    """

    case: Case
    outcome: Outcome
    slowdown: Ratio
    allowed: float
    noise_floor: float
    p50: tuple[float, float] | None = None

    @property
    def contradicts_p50(self) -> bool:
        """The medians say faster where the slow-down says slower, or the other way round."""
        if self.p50 is None:
            return False
        then, now = self.p50
        return self.slowdown.contradicted_by(now, then)

    @property
    def too_noisy(self) -> bool:
        """Undecided, and the slow-down is no number to show: its interval is wide, or the medians contradict it."""
        return self.outcome == Outcome.UNDECIDED and (self.slowdown.is_wide or self.contradicts_p50)


def judge(
    case: Case,
    ratio: Ratio,
    allowed: float,
    noise_floor: float = 0.0,
    *,
    p50: tuple[float, float] | None = None,
    disturbed_now: bool = False,
    disturbed_then: bool = False,
) -> Verdict:
    """Fail only if the whole interval, widened by the noise floor, lies above what is allowed; pass only if below.

    Args:
        case: temperature and batch.
        ratio: new over old.
        allowed: the slow-down that passes.
        noise_floor: by how much the machine drifts, 0 for calls that were made side by side.
        p50: wall-clock milliseconds of a call then and now.
        disturbed_now: other processes took part of the machine, which only slows down: no reason to fail.
        disturbed_then: likewise while the baseline was recorded: no reason to pass.
    """
    widened = Ratio(ratio.ratio, ratio.low / (1 + noise_floor), ratio.high * (1 + noise_floor))
    limit = 1 + allowed
    outcome = Outcome.UNDECIDED
    if widened.low > limit and not disturbed_now:
        outcome = Outcome.FAIL
    elif widened.high < limit and not disturbed_then:
        outcome = Outcome.PASS
    return Verdict(case, outcome, widened, allowed, noise_floor, p50)


def overall(verdicts: Iterable[Verdict]) -> Outcome:
    """Failed if any case did, passed if all did."""
    outcomes = {verdict.outcome for verdict in verdicts}
    return next((outcome for outcome in (Outcome.FAIL, Outcome.UNDECIDED) if outcome in outcomes), Outcome.PASS)


def parse_regression(text: str) -> float:
    """0.05 from "5%".

    Raises:
        OptionError: no percentage, or none that makes sense.
    """
    number = text.strip().removesuffix("%")
    try:
        percent = float(number) if text.strip().endswith("%") else math.nan
    except ValueError:
        percent = math.nan
    if not 0 <= percent < math.inf:
        raise OptionError(
            f"--max-regression is '{text}'", "It has to be a percentage, zero or more.", "E.g. --max-regression 5%."
        )
    return percent / 100
