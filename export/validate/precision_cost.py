"""What a low precision costs: an artifact against the fp64 reference, where it may keep other tokens."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from export.validate.cost_bounds import CostBounds
from export.validate.outputs import near_ties, same_decisions
from export.validate.run_result import RunResult
from export.validate.selection import differing_tokens, same_tokens
from export.validate.tolerances import Bounds
from madtp.ops.recorder import jaccards


@dataclass
class PrecisionCost:
    """One artifact at one temperature, over all requests.

    Attributes:
        decisions: requests with an answer, of which `equal` have that of the fp64 reference, `tied` another one that
            it nearly gave itself.
        tokens: of each batch, tokens after all layers together, in the reference and the artifact.
        flips: tokens that the first layer that differs decides otherwise, of which `explained` are as near to the
            threshold as this precision moves scores, measured in torch.
        margins: of each of the flips, how far scores had to move for it, relative to the mean |score|; infinite where
            no such move gives it.
    """

    bounds: CostBounds
    decisions: int = 0
    equal: int = 0
    tied: int = 0
    jaccards: list[float] = field(default_factory=list)
    tokens: list[tuple[int, int]] = field(default_factory=list)
    flips: int = 0
    explained: int = 0
    margins: list[float] = field(default_factory=list)

    def add(
        self,
        exact: RunResult,
        answer: RunResult,
        rounded: RunResult,
        bounds: Bounds,
        score_errors: Sequence[float],
        pad_id: int,
    ) -> None:
        """Compare one batch.

        Args:
            exact, answer, rounded: of the fp64 reference, the artifact, and torch in its precision.
            score_errors: as in `export.validate.selection`.
        """
        for output, expected in exact.outputs.items():
            same = same_decisions(output, expected, answer.outputs.get(output), pad_id)
            if same is not None:
                self.decisions += len(same)
                self.equal += int(same.sum())
                ties = near_ties(output, exact.outputs, rounded.outputs, bounds)
                self.tied += 0 if ties is None else int((~same & ties).sum())
        pairs = list(zip(exact.layers, answer.layers, score_errors, strict=True))
        self.tokens.append((sum(left.tokens for left, _, _ in pairs), sum(right.tokens for _, right, _ in pairs)))
        first = True
        for left, right, error in pairs:
            if left.source_ids is not None and right.source_ids is not None:
                self.jaccards += jaccards(left.source_ids, right.source_ids)
            if first and not same_tokens(left, right):
                flips = differing_tokens(left, right, error)
                self.flips += len(flips)
                self.explained += sum(flip.explained for flip in flips)
                self.margins += [flip.margin for flip in flips]
                first = False

    @property
    def agreement(self) -> float:
        """Share of answers that are equal or nearly tied; 1 without any."""
        return (self.equal + self.tied) / self.decisions if self.decisions else 1.0

    @property
    def jaccard(self) -> float | None:
        """Mean over requests and layers; None where ids are not shown."""
        return sum(self.jaccards) / len(self.jaccards) if self.jaccards else None

    @property
    def margin_median(self) -> float | None:
        """How far scores had to move for half of the flips; None without flips."""
        return median(self.margins) if self.margins else None

    @property
    def margin_max(self) -> float | None:
        """The same of the flip that is furthest from the threshold."""
        return max(self.margins, default=None)

    @property
    def more_tokens(self) -> float:
        """By what share the artifact keeps more tokens."""
        before, after = (sum(column) for column in zip(*self.tokens, strict=True)) if self.tokens else (1, 1)
        return after / before - 1

    @property
    def damage(self) -> list[str]:
        """What is beyond the bounds or not explained, a sentence each."""
        found = []
        if self.agreement < self.bounds.agreement:
            found.append(
                f"{self.decisions - self.equal - self.tied} of {self.decisions} answers are not those of the fp64 "
                f"reference, near ties apart; at most {1 - self.bounds.agreement:.0%} may be others"
            )
        if self.jaccard is not None and self.jaccard < self.bounds.jaccard:
            found.append(f"the mean Jaccard of kept tokens is {self.jaccard:.3f}, below {self.bounds.jaccard}")
        if abs(self.more_tokens) > self.bounds.tokens:
            found.append(f"{self.more_tokens:+.1%} tokens are kept, and at most {self.bounds.tokens:.0%} may change")
        if self.explained < self.flips:
            found.append(
                f"{self.flips - self.explained} of {self.flips} tokens that are decided otherwise are further from the "
                "threshold than this precision moves scores"
            )
        return found

    def __str__(self) -> str:
        kept = "" if self.jaccard is None else f", mean Jaccard of kept tokens {self.jaccard:.3f}"
        flips = f", {self.flips} tokens decided otherwise first, {self.explained} of them near the threshold"
        if self.margins:
            flips += (
                f" (at the median {median(self.margins):.1e} of the mean score away, {max(self.margins):.1e} at most)"
            )
        ties = f" ({self.tied} more nearly tied)" if self.tied else ""
        return (
            f"{self.equal}/{self.decisions} answers of the fp64 reference{ties}, {self.more_tokens:+.2%} tokens{kept}"
            f"{flips if self.flips else ''}"
        )

    def to_json(self) -> dict[str, Any]:
        """For the result's JSON."""
        return self.entry() | {"bounds": asdict(self.bounds)}

    def entry(self) -> dict[str, Any]:
        """The manifest's entry; a number that is not finite is None."""
        names = (
            "decisions",
            "equal",
            "tied",
            "jaccard",
            "more_tokens",
            "flips",
            "explained",
            "margin_median",
            "margin_max",
        )
        values = {name: getattr(self, name) for name in names}
        return {name: None if value in (math.inf, -math.inf) else value for name, value in values.items()}
