"""The outputs of two runners: errors, and whether their answers are the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from export.validate.teacher_forcing import TEXT_LOGITS
from export.validate.tolerances import Bounds
from madtp.tasks.decisions import DECIDED_AS_WRITTEN, DECIDED_BY_LARGEST, texts_equal
from madtp.tasks.requests import COUNTS_SUFFIX, Outputs


@dataclass
class OutputAgreement:
    """One output over all comparisons of a pair with the same kept tokens.

    Attributes:
        worst, mean: |difference| between the two.
        cosine: least over requests; None for integer outputs.
        error: |difference| of the second runner from the fp64 reference, or from the first runner where the reference
            was not run or kept other tokens; of the comparison that came closest to its limit.
        allowed: that limit; `most_allowed`: the largest limit of all comparisons.
        decided: requests with the same answer, of `decisions`; both 0 for outputs that are not an answer.
        failures: comparisons in which it left tolerance.
    """

    output: str
    values: int = 0
    worst: float = 0.0
    total: float = 0.0
    cosine: float | None = None
    error: float = 0.0
    allowed: float = 0.0
    most_allowed: float = 0.0
    decided: int = 0
    decisions: int = 0
    failures: int = 0

    @property
    def mean(self) -> float:
        return self.total / max(self.values, 1)

    def to_json(self) -> dict[str, Any]:
        """For the result's JSON."""
        return {
            "output": self.output,
            "worst": self.worst,
            "mean": self.mean,
            "cosine": self.cosine,
            "error": self.error,
            "allowed": self.allowed,
            "decided": self.decided,
            "decisions": self.decisions,
        }


def compare_outputs(
    totals: dict[str, OutputAgreement],
    reference: Outputs,
    answer: Outputs,
    torch_outputs: Outputs,
    fp64: Outputs | None,
    bounds: Bounds,
    pad_id: int = 0,
) -> list[str]:
    """Compare the outputs of one batch, add them to `totals`, and return what is wrong.

    Args:
        torch_outputs: torch's in the artifact's precision.
        fp64: None where the fp64 reference was not run or kept other tokens.
        pad_id: what fills the rows of shorter generated texts.
    """
    failures = []
    for output, expected in reference.items():
        if output.endswith(COUNTS_SUFFIX):
            continue
        total = totals.setdefault(output, OutputAgreement(output))
        actual = answer.get(output)
        if actual is None or (expected.is_floating_point() and actual.shape != expected.shape):
            wrong = [f"{output} is missing or has another shape"]
        elif expected.is_floating_point():
            precise = None if fp64 is None else (torch_outputs[output], fp64[output])
            wrong = _compare_floats(total, expected, actual, precise, bounds)
        else:
            # Rounding alone writes the texts of fp32; where errors are larger, words may be as good as tied.
            exact = bounds.tolerance.dtype == torch.float32 and bounds.tolerance.cost is None
            ties = None if exact else near_ties(output, torch_outputs, fp64, bounds)
            wrong = _compare_integers(total, expected, actual, ties, pad_id)
        total.failures += bool(wrong)
        failures += wrong
    return failures


def _compare_floats(
    total: OutputAgreement, expected: Tensor, actual: Tensor, precise: tuple[Tensor, Tensor] | None, bounds: Bounds
) -> list[str]:
    expected, actual = expected.double(), actual.double()
    difference = (actual - expected).abs()
    worst, scale = _largest(difference), _largest(expected.abs())
    own = _largest((precise[0].double() - precise[1]).abs()) if precise else 0.0
    error = _largest((actual - precise[1]).abs()) if precise else worst
    allowed = bounds.allowed(total.output, scale, own)
    if not worst <= total.worst:
        total.worst = worst
    total.most_allowed = max(total.most_allowed, allowed)
    total.total += float(difference.sum())
    total.values += difference.numel()
    cosine = float(torch.cosine_similarity(expected.flatten(1), actual.flatten(1), dim=1).min())
    total.cosine = cosine if total.cosine is None or not cosine >= total.cosine else total.cosine
    if not total.allowed or not error / max(allowed, 1e-30) <= total.error / max(total.allowed, 1e-30):
        total.error, total.allowed = error, allowed
    failures = []
    if not error <= allowed:  # a NaN is a failure too
        against = "; the error against the fp64 reference is " if precise else ", an error of "
        failures.append(f"{total.output} differ by {worst:.2e}{against}{error:.2e}, allowed {allowed:.0e}")
    if total.output in DECIDED_BY_LARGEST and expected.shape[1] > 1:
        # Two values closer than the tolerance are a tie that rounding may break either way.
        best = expected.topk(2, dim=1).values
        tie = best[:, 0] - best[:, 1] <= 2 * allowed
        failures += _decide(total, (actual.argmax(dim=1) == expected.argmax(dim=1)) | tie)
    return failures


def _compare_integers(
    total: OutputAgreement, expected: Tensor, actual: Tensor, ties: Tensor | None, pad_id: int
) -> list[str]:
    if total.output in DECIDED_AS_WRITTEN:
        same = texts_equal(expected, actual, pad_id)
        return _decide(total, same if ties is None else same | ties)
    return [] if torch.equal(expected, actual) else [f"{total.output} differs"]


def _decide(total: OutputAgreement, same: Tensor) -> list[str]:
    total.decisions += len(same)
    total.decided += int(same.sum())
    return [] if same.all() else [f"{int((~same).sum())} decisions differ ({total.output})"]


def near_ties(output: str, outputs: Outputs, others: Outputs | None, bounds: Bounds) -> Tensor | None:
    """[B]: requests whose answer errors within bounds may change; None for an output that is no answer.

    The two largest values are closer than twice the tolerance: of the output, or for one of the words of a text.

    Args:
        others: outputs whose difference from `outputs` is torch's own error; None where there is none.
    """
    name = TEXT_LOGITS if output in DECIDED_AS_WRITTEN else output
    values = outputs.get(name)
    if values is None or name not in (TEXT_LOGITS, *DECIDED_BY_LARGEST) or values.shape[-1] < 2:
        return None
    other = None if others is None else others.get(name)
    comparable = other is not None and other.shape == values.shape
    own = _largest((values.double() - other).abs()) if other is not None and comparable else 0.0
    allowed = bounds.allowed(name, _largest(values.abs()), own)
    best = values.topk(2, dim=-1).values
    return (best[..., 0] - best[..., 1] <= 2 * allowed).reshape(len(values), -1).any(dim=1)


def same_decisions(output: str, expected: Tensor, actual: Tensor | None, pad_id: int) -> Tensor | None:
    """[B]: which requests have the same answer, near ties apart; None for an output that is none."""
    if output in DECIDED_BY_LARGEST and expected.shape[1] > 1:
        if actual is None or actual.shape != expected.shape:
            return torch.zeros(len(expected), dtype=torch.bool)
        return actual.argmax(dim=1) == expected.argmax(dim=1)
    if output in DECIDED_AS_WRITTEN and actual is not None:
        return texts_equal(expected, actual, pad_id)
    return None


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def float_outputs(reference: Mapping[str, Tensor]) -> list[str]:
    """Names of the outputs that a tolerance can be given for."""
    return [name for name, value in reference.items() if value.is_floating_point()]
