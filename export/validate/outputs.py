"""Do both give the same outputs, and the same answers?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from export.validate.parity import DECIDED_AS_WRITTEN, DECIDED_BY_LARGEST
from export.validate.tolerances import Bounds
from madtp.tasks.requests import COUNTS_SUFFIX, Outputs


@dataclass
class OutputAgreement:
    """One output over all comparisons of a pair with the same kept tokens.

    Attributes:
        worst, mean: |difference| between the two.
        cosine: least over requests; None for outputs that are no floats.
        error: largest |difference| of the second from torch in float64; where that kept other tokens, from the first.
        allowed: that error may be; of the comparison that came closest to it.
        decided: requests with the same answer, of `decisions`; none where the output decides nothing.
        failures: comparisons in which it was wrong.
    """

    output: str
    values: int = 0
    worst: float = 0.0
    total: float = 0.0
    cosine: float | None = None
    error: float = 0.0
    allowed: float = 0.0
    decided: int = 0
    decisions: int = 0
    failures: int = 0

    @property
    def mean(self) -> float:
        """Over all values."""
        return self.total / max(self.values, 1)

    def to_json(self) -> dict[str, Any]:
        """For the verdict."""
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
    exact: Outputs | None,
    bounds: Bounds,
) -> list[str]:
    """Compare the outputs of one batch; returns what is wrong, in words.

    Args:
        totals: by output; completed.
        reference, answer: the pair's.
        torch_outputs: of torch in the artifact's precision.
        exact: of torch in float64; None where it kept other tokens.
        bounds: what may differ.
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
            yardstick = None if exact is None else (torch_outputs[output], exact[output])
            wrong = _compare_floats(total, expected, actual, yardstick, bounds)
        else:
            wrong = _compare_integers(total, expected, actual)
        total.failures += bool(wrong)
        failures += wrong
    return failures


def _compare_floats(
    total: OutputAgreement, expected: Tensor, actual: Tensor, yardstick: tuple[Tensor, Tensor] | None, bounds: Bounds
) -> list[str]:
    expected, actual = expected.double(), actual.double()
    difference = (actual - expected).abs()
    worst, scale = _largest(difference), _largest(expected.abs())
    own = _largest((yardstick[0].double() - yardstick[1]).abs()) if yardstick else 0.0
    error = _largest((actual - yardstick[1]).abs()) if yardstick else worst
    allowed = bounds.allowed(total.output, scale, own)
    if not worst <= total.worst:
        total.worst = worst
    total.total += float(difference.sum())
    total.values += difference.numel()
    cosine = float(torch.cosine_similarity(expected.flatten(1), actual.flatten(1), dim=1).min())
    total.cosine = cosine if total.cosine is None or not cosine >= total.cosine else total.cosine
    if not total.allowed or not error / max(allowed, 1e-30) <= total.error / max(total.allowed, 1e-30):
        total.error, total.allowed = error, allowed
    failures = []
    if not error <= allowed:  # a NaN is a failure too
        whose = "torch in float64" if yardstick else "each other"
        failures.append(
            f"{total.output} differ by {worst:.2e}; the error against {whose} is {error:.2e}, allowed {allowed:.0e}"
        )
    if total.output in DECIDED_BY_LARGEST and expected.shape[1] > 1:
        # Two values closer than the tolerance are a tie that rounding may break either way.
        best = expected.topk(2, dim=1).values
        tie = best[:, 0] - best[:, 1] <= 2 * allowed
        failures += _decide(total, (actual.argmax(dim=1) == expected.argmax(dim=1)) | tie)
    return failures


def _compare_integers(total: OutputAgreement, expected: Tensor, actual: Tensor) -> list[str]:
    same = rows_equal(expected, actual)
    if total.output in DECIDED_AS_WRITTEN:
        return _decide(total, same)
    return [] if same.all() else [f"{total.output} differs"]


def _decide(total: OutputAgreement, same: Tensor) -> list[str]:
    total.decisions += len(same)
    total.decided += int(same.sum())
    return [] if same.all() else [f"{int((~same).sum())} decisions differ ({total.output})"]


def rows_equal(expected: Tensor, actual: Tensor) -> Tensor:
    """[B]: which rows are the same; texts of another length are not."""
    if actual.shape != expected.shape:
        return torch.zeros(expected.shape[0], dtype=torch.bool)
    return (actual == expected).reshape(len(expected), -1).all(dim=1)


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def outputs_of(reference: Mapping[str, Tensor]) -> list[str]:
    """Names of the outputs that a tolerance can be given for."""
    return [name for name, value in reference.items() if value.is_floating_point()]
