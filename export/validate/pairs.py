"""All pairs of contestants over all batches: outputs, answers and kept tokens, at every temperature."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from export.engine.range import Range
from export.errors import BackendError
from export.validate.contestants import Answer, Contestant, Inputs, TorchContestant
from export.validate.outputs import OutputAgreement, compare_outputs, outputs_of
from export.validate.parity import batches_of
from export.validate.selection import Selection, same_tokens, score_errors
from export.validate.teacher_forcing import TEXT_LOGITS, Text, written_text
from export.validate.tolerances import Bounds, check_outputs
from madtp.data.samples import Config, SampleSet, collate

REFERENCE = "torch"


@dataclass(frozen=True)
class Failure:
    """A comparison that failed: what is wrong in words, and the inputs that show it."""

    text: str
    inputs: Inputs
    temperature: float


@dataclass
class PairResult:
    """Two contestants at one temperature.

    Attributes:
        pair: "torch/onnx" and so on.
        requests: compared; a request counts once alone and once in each batch that it was part of.
        explained: requests of batches in which rounding decides a token; their outputs are not compared.
        yardstick: requests whose error was measured against torch in float64, which kept the same tokens.
    """

    pair: str
    temperature: float
    requests: int = 0
    explained: int = 0
    yardstick: int = 0
    outputs: dict[str, OutputAgreement] = field(default_factory=dict)
    selection: Selection = field(default_factory=Selection)
    failures: list[Failure] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """No failure, and something was compared to the end."""
        return not self.failures and self.requests > self.explained

    def to_json(self) -> dict[str, Any]:
        """For the verdict."""
        return {
            "pair": self.pair,
            "temperature": self.temperature,
            "passed": self.passed,
            "requests": self.requests,
            "explained": self.explained,
            "yardstick": self.yardstick,
            "outputs": [output.to_json() for output in self.outputs.values()],
            "selection": self.selection.to_json(),
            "failures": [failure.text for failure in self.failures],
        }


@dataclass(frozen=True)
class _Yardstick:
    """What errors of a batch are measured by.

    Attributes:
        reference: of torch in the artifact's precision.
        exact: of torch in float64; None where that kept other tokens.
        score_errors: what rounding may move scores by, at each layer.
    """

    reference: Answer
    exact: Answer | None
    score_errors: list[float]


class Comparison:
    """Compares contestants batch by batch.

    Args:
        reference: torch in the artifact's precision.
        yardstick: torch in float64.
        others: ONNX Runtime, TensorRT.
        bounds: what may differ.
    """

    def __init__(
        self, reference: TorchContestant, yardstick: TorchContestant, others: Sequence[Contestant], bounds: Bounds
    ) -> None:
        self._reference, self._yardstick, self._others, self._bounds = reference, yardstick, others, bounds
        self.results: dict[tuple[str, float], PairResult] = {}

    def compare(self, name: str, inputs: Inputs, temperature: float) -> dict[str, Answer]:
        """Run everybody on one batch and compare all pairs; returns the answers by contestant, of those that ran.

        Args:
            name: of the batch, for messages.
            inputs: from `madtp.data.samples.collate`.
            temperature: zero compares dense answers.
        """
        reference = self._reference.answer(inputs, temperature)
        text = written_text(inputs, reference.outputs)
        reference = _reading(self._reference, reference, text)
        check_outputs(self._bounds.given, outputs_of(reference.outputs))
        exact = _reading(self._yardstick, self._yardstick.answer(inputs, temperature), text)
        errors = score_errors(reference, exact, self._bounds.tolerance)
        measured = _Yardstick(reference, exact if _same(reference, exact) else None, errors)
        answers = {REFERENCE: reference}
        for other in self._others:
            try:
                answer = _reading(other, other.answer(inputs, temperature), text)
            except BackendError as error:
                result = self._result(f"{REFERENCE}/{other.name}", temperature)
                result.requests += len(next(iter(inputs.values())))
                what = (
                    f"{result.pair}, temperature {temperature:g}, {name}: it failed to run: {error.what}: {error.why}"
                )
                result.failures.append(Failure(what, inputs, temperature))
                continue
            for earlier, left in answers.items():
                # Only torch knows scores; where a runtime kept torch's tokens, they are that runtime's too.
                agrees = earlier == REFERENCE or _same(reference, left)
                shown = Answer(left.outputs, reference.layers) if agrees else None
                result = self._result(f"{earlier}/{other.name}", temperature)
                where = f"{result.pair}, temperature {temperature:g}, {name}"
                wrong = self._judge(result, shown, answer, measured, inputs)
                result.failures += [Failure(f"{where}: {text}", inputs, temperature) for text in wrong]
            answers[other.name] = answer
        return answers

    def _result(self, pair: str, temperature: float) -> PairResult:
        return self.results.setdefault((pair, temperature), PairResult(pair, temperature))

    def _judge(
        self,
        result: PairResult,
        left: Answer | None,
        right: Answer,
        measured: _Yardstick,
        inputs: Inputs,
    ) -> list[str]:
        requests = len(next(iter(inputs.values())))
        result.requests += requests
        if left is None:  # what comes before differs already, and was judged there
            result.explained += requests
            return []
        differing = result.selection.add(left, right, measured.score_errors)
        if differing:
            lost = [token for token in differing if not token.explained]
            if not lost:
                result.explained += requests
                return []
            token = max(lost, key=lambda difference: difference.margin)
            what = "token counts" if token.source_id is None else "kept tokens"
            which = "" if token.source_id is None else f" ({len(differing)} of them, e.g. token {token.source_id})"
            return [
                f"{what} differ first at {token.encoder} layer {token.layer}{which}, where scores had to move by "
                f"{token.margin:.1e} of their mean, and rounding moves them by {token.allowed:.0e}"
            ]
        result.yardstick += requests if measured.exact is not None else 0
        return compare_outputs(
            result.outputs,
            left.outputs,
            right.outputs,
            measured.reference.outputs,
            None if measured.exact is None else measured.exact.outputs,
            self._bounds,
        )


def _reading(contestant: Contestant, answer: Answer, text: Text | None) -> Answer:
    """An answer with the logits of torch's text: ids alone would hide a decoder that is somewhat off."""
    if text is None:
        return answer
    return replace(answer, outputs={**answer.outputs, TEXT_LOGITS: contestant.text_logits(text)})


def _same(left: Answer, right: Answer) -> bool:
    return all(same_tokens(a, b) for a, b in zip(left.layers, right.layers, strict=True))


def compare_samples(
    comparison: Comparison,
    config: Config,
    samples: SampleSet,
    temperatures: Sequence[float],
    batch: Range,
    on_detail: Callable[[str], None],
) -> dict[str, list[list[int]]]:
    """Compare all samples alone and in batches at every temperature.

    Returns:
        Encoder -> tokens after each layer, a row for every smallest batch (each sample alone), in torch, at the first
        of `temperatures`.
    """
    counts: dict[str, list[list[int]]] = {}
    groups = batches_of(samples, batch)
    for temperature in temperatures:
        for number, indices in enumerate(groups):
            on_detail(f"batch {number + 1} of {len(groups)} at temperature {temperature:g}")
            inputs = collate([samples.requests[index] for index in indices], config)
            answers = comparison.compare(f"samples {indices}", inputs, temperature)
            if temperature == temperatures[0] and len(indices) == batch.min:
                for layer in answers[REFERENCE].layers:
                    rows = counts.setdefault(layer.encoder, [])
                    if layer.index == 0:
                        rows.append([])
                    rows[-1].append(layer.tokens)
    return counts
