"""Is it slower? Pass, fail, or undecided."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from export.bench.calls import Case
from export.bench.statistics import Ratio
from export.errors import OptionError


class Verdict(StrEnum):
    """What a comparison came to."""

    PASS = "pass"
    FAIL = "fail"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class CaseVerdict:
    """The verdict on one case."""

    case: Case
    outcome: Verdict
    slowdown: Ratio  # how many times longer a call takes, with the bounds that the verdict rests on
    allowed: float  # slow-down that passes, 0.05 for 5 %
    noise_floor: float  # by how much the bounds were widened; 0 where both artifacts ran side by side
    p50: tuple[float, float] | None = None  # wall-clock milliseconds of a call in the baseline and now

    @property
    def too_noisy(self) -> bool:
        """Undecided, and the slow-down means nothing: its interval is wide, or the p50s contradict it."""
        contradicted = self.p50 is not None and self.slowdown.contradicted_by(self.p50[1], self.p50[0])
        return self.outcome == Verdict.UNDECIDED and (self.slowdown.is_wide or contradicted)


def judge(
    case: Case, ratio: Ratio, allowed: float, noise_floor: float = 0.0, *, p50: tuple[float, float] | None = None
) -> CaseVerdict:
    """Fail only if the whole interval, widened by the noise floor, is above what is allowed; pass only if below."""
    widened = Ratio(ratio.ratio, ratio.low / (1 + noise_floor), ratio.high * (1 + noise_floor))
    limit = 1 + allowed
    outcome = Verdict.FAIL if widened.low > limit else Verdict.PASS if widened.high < limit else Verdict.UNDECIDED
    return CaseVerdict(case, outcome, widened, allowed, noise_floor, p50)


def overall(verdicts: Iterable[CaseVerdict]) -> Verdict:
    """Fail if any case did, pass if all did."""
    outcomes = {verdict.outcome for verdict in verdicts}
    return next((outcome for outcome in (Verdict.FAIL, Verdict.UNDECIDED) if outcome in outcomes), Verdict.PASS)


def parse_regression(text: str) -> float:
    """0.05 from "5%".

    Raises:
        OptionError: not a percentage of zero or more.
    """
    number = text.strip().removesuffix("%")
    try:
        percent = float(number) if text.strip().endswith("%") else math.nan
    except ValueError:
        percent = math.nan
    if not 0 <= percent < math.inf:
        raise OptionError(
            f"--max-regression is '{text}'", "It has to be a percentage of zero or more.", "E.g. --max-regression 5%."
        )
    return percent / 100
