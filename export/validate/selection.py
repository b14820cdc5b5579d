"""Kept tokens of two runners: which differ, and whether rounding explains it."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from export.validate.run_result import LayerTokens, RunResult
from export.validate.tolerances import FP64_FACTOR, Tolerance
from madtp.ops.recorder import CompactRecord, jaccards

LISTED = 20  # differing tokens that a result names


@dataclass(frozen=True)
class TokenDifference:
    """A token that one kept and the other did not.

    Attributes:
        encoder, layer: the first layer at which they differ.
        sequence: row of the batch.
        source_id: of the token, None where the artifact shows counts only.
        decided_by: "threshold" (another number of tokens is kept), "rank" (another token of equal number), "order"
            (another one is stored last), or "ids" (ids that no selection gives).
        margin: how far, relative to the mean |score|, scores had to move for that; infinite where none can.
        allowed: how far rounding moves scores at this layer, likewise.
        explained: the margin is within that.
    """

    encoder: str
    layer: int
    sequence: int
    source_id: int | None
    decided_by: str
    margin: float
    allowed: float
    explained: bool


@dataclass
class LayerAgreement:
    """One layer over all comparisons of a pair.

    Attributes:
        equal: comparisons in which exactly the same tokens were kept; where ids are not shown, as many.
        jaccard: least and mean of |kept by both| / |kept by either| over sequences; None where ids are not shown.
        tokens: of each compared batch, tokens after the layer in the reference and in the other.
    """

    encoder: str
    layer: int
    compared: int = 0
    equal: int = 0
    tokens: list[tuple[int, int]] = field(default_factory=list)
    jaccards: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For the result's JSON."""
        values = torch.tensor(self.jaccards, dtype=torch.float64)
        return {
            "encoder": self.encoder,
            "layer": self.layer,
            "compared": self.compared,
            "equal": self.equal,
            "jaccard_min": float(values.min()) if self.jaccards else None,
            "jaccard_mean": float(values.mean()) if self.jaccards else None,
            "tokens": [list(pair) for pair in self.tokens],
        }


@dataclass
class Selection:
    """Kept tokens of a pair at one temperature."""

    layers: list[LayerAgreement] = field(default_factory=list)
    differences: list[TokenDifference] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Rounding explains every difference."""
        return all(difference.explained for difference in self.differences)

    @property
    def shows_ids(self) -> bool:
        """Whether it was seen which tokens were kept, not only how many."""
        return any(layer.jaccards for layer in self.layers)

    @property
    def layers_equal(self) -> int:
        """Layers at which every comparison agreed."""
        return sum(layer.equal == layer.compared for layer in self.layers)

    def add(self, reference: RunResult, answer: RunResult, score_errors: Sequence[float]) -> list[TokenDifference]:
        """Compare one batch; returns the differing tokens of the first layer that differs, empty where none does.

        Args:
            reference: torch's layers, with their records.
            score_errors: what rounding may move a score by at each layer, relative to the mean |score|.
        """
        if not self.layers:
            self.layers = [LayerAgreement(layer.encoder, layer.index) for layer in reference.layers]
        first: list[TokenDifference] = []
        every = zip(self.layers, reference.layers, answer.layers, score_errors, strict=True)
        for agreement, left, right, score_error in every:
            agreement.compared += 1
            agreement.tokens.append((left.tokens, right.tokens))
            if left.source_ids is not None and right.source_ids is not None:
                agreement.jaccards += jaccards(left.source_ids, right.source_ids)
            if same_tokens(left, right):
                agreement.equal += 1
            elif not first:
                first = differing_tokens(left, right, score_error)
        self.differences += first
        return first

    def to_json(self) -> dict[str, Any]:
        """For the result's JSON."""
        return {
            "layers": [layer.to_json() for layer in self.layers],
            "differences": len(self.differences),
            "listed": [asdict(difference) for difference in self.differences[:LISTED]],
        }


def same_tokens(left: LayerTokens, right: LayerTokens) -> bool:
    """Whether two layers kept the same, in the same order, as far as both show it."""
    if left.source_ids is None or right.source_ids is None:
        return left.tokens == right.tokens
    return torch.equal(left.source_ids, right.source_ids)


def score_errors(reference: RunResult, fp64: RunResult | None, tolerance: Tolerance) -> list[float]:
    """What rounding may move a score by at each layer, relative to the mean |score|.

    Like outputs: twice the error of torch's own scores in the artifact's precision, or the precision's usual error
    where that is more, or where fp64 was not run (None) or kept other tokens in an earlier layer.
    """
    if fp64 is None:
        return [tolerance.score] * len(reference.layers)
    found = []
    comparable = True
    for left, right in zip(reference.layers, fp64.layers, strict=True):
        own = 0.0
        if comparable and left.record is not None and right.record is not None:
            moved = (left.record.importance.double() - right.record.importance).abs().max()
            own = float(moved) / _scale(right.record)
        found.append(max(tolerance.score, FP64_FACTOR * own) if math.isfinite(own) else tolerance.score)
        comparable = comparable and same_tokens(left, right)
    return found


def differing_tokens(left: LayerTokens, right: LayerTokens, score_error: float) -> list[TokenDifference]:
    """Tokens that `right` keeps and `left` (torch) does not, or the reverse, given the same tokens before the layer.

    `score_error` is what rounding may move a score by, relative to the mean |score|. Without torch's record nothing
    explains a difference.
    """
    record = left.record

    def difference(sequence: int, source_id: int | None, decided_by: str, margin: float) -> TokenDifference:
        explained = margin <= score_error
        return TokenDifference(
            left.encoder, left.index, sequence, source_id, decided_by, margin, score_error, explained
        )

    if record is None:
        return [difference(0, None, "threshold", float("inf"))]
    moved = count_margin(record, right.tokens)
    if right.source_ids is None:
        return [difference(0, None, "threshold", moved)]
    found = []
    for sequence, ids in enumerate(right.source_ids.tolist()):
        for source_id, decided_by, margin in _differing(record, sequence, ids, moved):
            found.append(difference(sequence, source_id, decided_by, margin))
    return found


def _scale(record: CompactRecord) -> float:
    return max(float(record.importance.abs().mean()), 1e-30)


def count_margin(record: CompactRecord, tokens: int) -> float:
    """How far, relative to the mean |score|, scores have to move so that a layer leaves `tokens` tokens.

    0 where it does so anyway; NaN where scores are not finite.
    """
    length = record.importance.shape[1]
    if tokens < length + 1:
        return _keep_margin(record, tokens - 2)
    unpruned = [_keep_margin(record, length - 1), _keep_margin(record, record.min_keep - 1)]
    return min(unpruned) if record.pruned else 0.0


def _keep_margin(record: CompactRecord, keep: int) -> float:
    """Margin until K, the largest count of the batch, becomes `keep`.

    Every sample that asks for more has to fall, or one of them to rise.
    """
    ordered = record.importance.sort(dim=1, descending=True).values
    if not 0 <= keep <= ordered.shape[1]:
        return float("inf")
    if keep < record.keep:
        above = ordered[:, keep] - record.threshold
        return float(above[record.counts > keep].max()) / _scale(record)
    if keep > record.keep:
        return float((record.threshold - ordered[:, keep - 1]).min()) / _scale(record)
    return 0.0


def _differing(record: CompactRecord, sequence: int, ids: list[int], moved: float) -> list[tuple[int, str, float]]:
    """(source id, decided by, margin) of one sequence's differing tokens."""
    before, after = record.entering_ids[sequence].tolist(), record.source_ids[sequence].tolist()
    if ids == after:
        return []
    scores = dict(zip(before[1:], record.importance[sequence].tolist(), strict=True))
    ranked = sorted(scores, key=lambda token: -scores[token])  # stable: equal ones by position, as the op has it
    merged = -(record.layer + 1)
    pruned = len(ids) < len(before)
    expected_ends = [before[0], *([merged] if pruned else [])]
    if [ids[0], *(ids[-1:] if pruned else [])] != expected_ends or not set(ids[1 : len(ids) - pruned]) <= scores.keys():
        return [(token, "ids", float("inf")) for token in sorted(set(ids) ^ set(after)) or [ids[0]]]
    kept = ids[1:-1] if pruned else ids[1:]
    usual = ranked[: len(kept)]  # what torch would keep if it kept as many
    torch_kept = set(after[1:-1] if record.pruned else after[1:])
    found = []
    for token in sorted(set(kept) ^ set(usual)):
        other = ranked[len(kept)] if token in usual else ranked[len(kept) - 1]
        found.append((token, "rank", abs(scores[token] - scores[other]) / _scale(record)))
    listed = {token for token, _, _ in found}
    found += [(token, "threshold", moved) for token in sorted((set(kept) ^ torch_kept) - listed)]
    if not found and kept[-1] != after[-2]:
        found.append((kept[-1], "order", abs(scores[kept[-1]] - scores[after[-2]]) / _scale(record)))
    return found or [(kept[-1], "ids", float("inf"))]
