"""Tolerances: what may differ between torch and an artifact, by the artifact's precision."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from export.errors import OptionError
from export.validate.cost_bounds import CostBounds

FP64_FACTOR = 2.0  # an artifact's error against fp64 may exceed the floor by this multiple of torch's own error


@dataclass(frozen=True)
class Tolerance:
    """What rounding explains in one precision.

    Attributes:
        dtype: the torch model's that the artifact is compared with.
        floor: error of an output; absolute, or relative to the output's largest |value| where that is above 1.
        score: error of a token's score or threshold, relative to the mean |score|.
        node: error of one node's output given identical inputs in the same runtime, relative to the largest |value|.
        cost: of a precision that moves scores across the threshold; of fp32 not.
        segment: error of a few nodes' output given identical inputs in another runtime, likewise.
    """

    dtype: torch.dtype
    floor: float
    score: float
    node: float
    segment: float
    cost: CostBounds | None = None

    def cost_at(self, temperature: float) -> CostBounds | None:
        """Bounds of the cost at a temperature; what 16 bits do to a dense model, its outputs show."""
        return self.cost if temperature > 0 or self.dtype == torch.float32 else None


# The scores are computed in float32 in every precision, but from states that carry the precision's own error. fp16 and
# bf16: eps is 1e-3 and 8e-3; a few layers' worth of it for states and scores, one or two for a node. In another runtime
# sums are added up in another order: a dot product of a few thousand fp32 terms moves by some 1e-6.
TOLERANCES = {
    "fp32": Tolerance(torch.float32, floor=1e-4, score=1e-5, node=1e-6, segment=1e-5),
    "fp16": Tolerance(torch.float16, floor=5e-3, score=5e-3, node=2e-3, segment=1e-2, cost=CostBounds()),
    "bf16": Tolerance(torch.bfloat16, floor=4e-2, score=4e-2, node=1.6e-2, segment=8e-2, cost=CostBounds()),
    "int8": Tolerance(torch.float32, floor=1e-1, score=5e-2, node=1e-6, segment=1e-1, cost=CostBounds()),
    "fp8": Tolerance(torch.float32, floor=1e-1, score=5e-2, node=1e-6, segment=1e-1, cost=CostBounds()),
}


@dataclass(frozen=True)
class Bounds:
    """The tolerance of a precision, and the absolute limits of single outputs that --tolerance sets (`given`)."""

    tolerance: Tolerance
    given: Mapping[str, float] = field(default_factory=dict)

    def allowed(self, output: str, scale: float, own: float) -> float:
        """The largest error that an output may have.

        `scale` is its largest |value| in torch; `own` is torch's error against the fp64 reference, 0 if unknown.
        """
        if output in self.given:
            return self.given[output]
        return self.tolerance.floor * max(1.0, scale) + FP64_FACTOR * own


def tolerance_of(precision: str) -> Tolerance:
    """The table's entry.

    Raises:
        OptionError: this precision has none.
    """
    if precision not in TOLERANCES:
        raise OptionError(
            f"artifacts of precision {precision} cannot be validated",
            f"There are tolerances for {', '.join(TOLERANCES)}.",
            "Validate an export in one of these.",
        )
    return TOLERANCES[precision]


def parse_tolerances(given: Iterable[str]) -> dict[str, float]:
    """From "output=value" texts.

    Raises:
        OptionError: a text is not of that form, or its value is negative or not finite.
    """
    parsed = {}
    for text in given:
        output, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not output or not 0 <= number < float("inf"):
            raise OptionError(
                f"--tolerance is '{text}'",
                "It has to be OUTPUT=VALUE, where VALUE is the largest allowed |error|.",
                "Use e.g. --tolerance logits=1e-3.",
            )
        parsed[output] = number
    return parsed


def check_tolerances(given: Mapping[str, float], outputs: Iterable[str]) -> None:
    """Refuse tolerances of outputs that the model does not have.

    Raises:
        OptionError: naming the output and those of the model.
    """
    names = list(outputs)
    for output in given:
        if output not in names:
            raise OptionError(
                f"--tolerance names the output '{output}'",
                f"The model's outputs are {', '.join(names)}.",
                "Name one of them.",
            )
