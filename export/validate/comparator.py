"""The comparator: outputs, answers and kept tokens of all pairs of runners, batch by batch, at every temperature."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from export.engine.range import Range
from export.errors import BackendError
from export.validate.model_runner import Inputs, ModelRunner, TorchModelRunner
from export.validate.outputs import OutputAgreement, compare_outputs, float_outputs
from export.validate.packed_batch import inputs_alone, run_batch_of, split_requests
from export.validate.precision_cost import PrecisionCost
from export.validate.run_result import RunResult
from export.validate.selection import Selection, same_tokens, score_errors
from export.validate.teacher_forcing import TEXT_LOGITS, generated_text
from export.validate.tolerances import Bounds, check_tolerances
from madtp.data.samples import Config, SampleSet, collate
from madtp.models.config import ClipConfig

REFERENCE = "torch"
TokenCounts = dict[str, list[list[int]]]  # encoder -> tokens after each layer, a row for every smallest batch


@dataclass(frozen=True)
class PairFailure:
    """A comparison that failed: what is wrong, the inputs that show it, and what a runtime raised if it did."""

    text: str
    inputs: Inputs
    temperature: float
    error: BackendError | None = None


@dataclass
class PairResult:
    """Two runners at one temperature.

    Attributes:
        requests: a request counts once alone and once in each batch that it was part of.
        excluded: requests of batches in which a score lies within rounding of the threshold; their outputs are not
            compared.
        against_fp64: of those, the ones whose errors were measured against the fp64 reference.
        cost: of a precision below float32 (`Tolerance.cost_at`).
    """

    pair: str
    temperature: float
    requests: int = 0
    excluded: int = 0
    compared: int = 0
    against_fp64: int = 0
    outputs: dict[str, OutputAgreement] = field(default_factory=dict)
    selection: Selection = field(default_factory=Selection)
    failures: list[PairFailure] = field(default_factory=list)
    cost: PrecisionCost | None = None

    @property
    def passed(self) -> bool:
        """No failure, no damage, and something was compared to the end."""
        return not self.failures and not self.damage and self.requests > self.excluded

    @property
    def damage(self) -> list[str]:
        """What the precision costs beyond bounds, a sentence each."""
        beyond = [] if self.cost is None else self.cost.damage
        return [f"{self.pair}, temperature {self.temperature:g}: {text}" for text in beyond]

    @property
    def same_answers(self) -> int:
        return self.compared - max((one.decisions - one.decided for one in self.outputs.values()), default=0)

    def to_json(self) -> dict[str, Any]:
        """For the result's JSON."""
        return {
            "pair": self.pair,
            "temperature": self.temperature,
            "passed": self.passed,
            "requests": self.requests,
            "explained": self.excluded,
            "yardstick": self.against_fp64,
            "outputs": [output.to_json() for output in self.outputs.values()],
            "selection": self.selection.to_json(),
            "failures": [failure.text for failure in self.failures] + self.damage,
            **({} if self.cost is None else {"cost": self.cost.to_json()}),
        }


class Judge:
    """Compares what torch in the artifact's precision, its fp64 reference and the artifact gave, batch by batch.

    With `always_fp64` the fp64 reference runs on every batch, so that every error is measured against it. Without, it
    runs where two runners differ by more than the floor or keep different tokens. Both pass and fail the same
    artifacts: what is within the floor of torch is within the floor and torch's own error of fp64.
    """

    def __init__(self, config: Config, fp64: ModelRunner, bounds: Bounds, *, always_fp64: bool = True) -> None:
        self.config = config
        self.pad_id = pad_id_of(config)
        self.results: dict[tuple[str, float], PairResult] = {}
        self._fp64, self._bounds, self._always_fp64 = fp64, bounds, always_fp64

    def judge(self, name: str, inputs: Inputs, temperature: float, ran: Mapping[str, RunResult]) -> None:
        """Compare all pairs of what `run_batch` gave for one batch; torch's result is the first."""
        reference, requests = ran[REFERENCE], len(next(iter(inputs.values())))
        fp64 = None
        cost = self._bounds.tolerance.cost_at(temperature)
        always = self._always_fp64 or cost is not None
        if always or not all(self._within_floor(*pair) for pair in combinations(ran.values(), 2)):
            fp64 = run_batch(self._fp64, inputs, temperature, reference)
        for (earlier, left), (later, right) in combinations(ran.items(), 2):
            result = self._result(f"{earlier}/{later}", temperature)
            result.requests += requests
            for wrong in self._judge(result, requests, left, right, reference, fp64):
                result.failures.append(self._failure(result, name, wrong, inputs))
        if cost is not None and fp64 is not None:
            errors = score_errors(reference, fp64, self._bounds.tolerance)
            for other in list(ran)[1:]:
                result = self._result(f"{REFERENCE}/{other}", temperature)
                result.cost = result.cost or PrecisionCost(cost)
                result.cost.add(fp64, ran[other], reference, self._bounds, errors, self.pad_id)

    def _result(self, pair: str, temperature: float) -> PairResult:
        return self.results.setdefault((pair, temperature), PairResult(pair, temperature))

    @staticmethod
    def _failure(
        result: PairResult, name: str, wrong: str, inputs: Inputs, error: BackendError | None = None
    ) -> PairFailure:
        text = f"{result.pair}, temperature {result.temperature:g}, {name}: {wrong}"
        return PairFailure(text, inputs, result.temperature, error)

    def _within_floor(self, left: RunResult, right: RunResult) -> bool:
        return _same(left, right) and not compare_outputs(
            {}, left.outputs, right.outputs, left.outputs, None, self._bounds, self.pad_id
        )

    def _judge(
        self,
        result: PairResult,
        requests: int,
        left: RunResult,
        right: RunResult,
        reference: RunResult,
        fp64: RunResult | None,
    ) -> list[str]:
        """Compare one batch of a pair; returns what is wrong."""
        if left is not reference and not _same(reference, left):  # it differs from torch, and was judged there
            result.excluded += requests
            return []
        # Only torch knows scores; where a runtime kept torch's tokens, they are that runtime's too.
        errors = score_errors(reference, fp64, self._bounds.tolerance)
        differing = result.selection.add(replace(left, layers=reference.layers), right, errors)
        if differing:
            lost = [token for token in differing if not token.explained]
            if not lost:
                result.excluded += requests
                return []
            token = max(lost, key=lambda difference: difference.margin)
            what = "token counts" if token.source_id is None else "kept tokens"
            which = "" if token.source_id is None else f" ({len(differing)} of them, e.g. token {token.source_id})"
            return [
                f"{what} differ first at {token.encoder} layer {token.layer}{which}, where scores had to move by "
                f"{token.margin:.1e} of their mean, and rounding moves them by {token.allowed:.0e}"
            ]
        exact = fp64.outputs if fp64 is not None and _same(reference, fp64) else None
        result.compared += requests
        result.against_fp64 += requests if exact is not None else 0
        return compare_outputs(
            result.outputs, left.outputs, right.outputs, reference.outputs, exact, self._bounds, self.pad_id
        )


class Comparator(Judge):
    """A judge that runs a batch in torch (`reference`) and in all others, which are in memory together.

    Where they are `packed`, torch runs every request of the batch alone, and each is judged by itself.
    """

    def __init__(
        self,
        reference: TorchModelRunner,
        fp64: ModelRunner,
        others: Sequence[ModelRunner],
        bounds: Bounds,
        *,
        always_fp64: bool = True,
        packed: bool = False,
    ) -> None:
        super().__init__(reference.config, fp64, bounds, always_fp64=always_fp64)
        self._reference, self._others, self._packed = reference, others, packed

    def compare(self, name: str, inputs: Inputs, temperature: float) -> dict[str, list[RunResult]]:
        """Run a batch from `collate` and compare all pairs; returns what each runner gave that did not fail.

        That is one result, or in the packed layout one for every request.

        `name` identifies the batch in failures.
        """
        alone = inputs_alone(self.config, inputs) if self._packed else [inputs]
        references = [run_batch(self._reference, own, temperature) for own in alone]
        check_tolerances(self._bounds.given, float_outputs(references[0].outputs))
        ran, requests = {REFERENCE: references}, len(next(iter(inputs.values())))
        for other in self._others:
            try:
                ran[other.name] = self._run(other, inputs, temperature, list(zip(alone, references, strict=True)))
            except BackendError as error:
                result = self._result(f"{REFERENCE}/{other.name}", temperature)
                result.requests += requests
                wrong = f"it failed to run: {error.what}: {error.why}"
                result.failures.append(self._failure(result, name, wrong, inputs, error))
        for index, own in enumerate(alone):
            which = f"{name}, request {index}" if len(alone) > 1 else name
            self.judge(which, own, temperature, {runner: results[index] for runner, results in ran.items()})
        return ran

    def _run(
        self, other: ModelRunner, inputs: Inputs, temperature: float, alone: Sequence[tuple[Inputs, RunResult]]
    ) -> list[RunResult]:
        references = [result for _, result in alone]
        if not self._packed:
            return [run_batch(other, inputs, temperature, references[0])]
        return split_requests(run_batch_of(other, inputs, temperature, alone, self.pad_id), references)


def run_batch(runner: ModelRunner, inputs: Inputs, temperature: float, reference: RunResult | None = None) -> RunResult:
    """Run a batch from `collate`.

    Where text is generated, the outputs include logits after every id of the text of `reference`, torch's result (None:
    this is it), as many for everybody: ids alone would hide a small error.
    """
    result = runner.run(inputs, temperature)
    text = generated_text(inputs, (reference or result).outputs)
    if text is None:
        return result
    return replace(result, outputs={**result.outputs, TEXT_LOGITS: runner.text_logits(text)})


def _same(left: RunResult, right: RunResult) -> bool:
    return all(same_tokens(a, b) for a, b in zip(left.layers, right.layers, strict=True))


def pad_id_of(config: Config) -> int:
    """What fills the rows of shorter generated texts."""
    return 0 if isinstance(config, ClipConfig) else config.pad_token_id


def batches_of(samples: SampleSet, batch: Range) -> list[list[int]]:
    """Indices of the batches to compare: every sample in the smallest batch, then all in batches of the largest."""
    indices = list(range(len(samples)))
    groups: list[list[int]] = []
    for size in sorted({batch.min, min(batch.max, len(samples))}):
        if batch.min <= size:
            padded = indices + indices[: -len(indices) % size]
            groups += [padded[start : start + size] for start in range(0, len(padded), size)]
    return groups


def compare_samples(
    comparator: Comparator,
    config: Config,
    samples: SampleSet,
    temperatures: Sequence[float],
    batch: Range,
    on_detail: Callable[[str], None],
) -> dict[float, TokenCounts]:
    """Compare all samples alone and in batches; returns torch's token counts of the smallest batches by temperature."""
    counts: dict[float, TokenCounts] = {}
    groups = batches_of(samples, batch)
    for temperature in temperatures:
        rows: TokenCounts = {}
        for number, indices in enumerate(groups):
            on_detail(f"batch {number + 1} of {len(groups)} at temperature {temperature:g}")
            inputs = collate([samples.requests[index] for index in indices], config)
            ran = comparator.compare(f"samples {indices}", inputs, temperature)
            if len(indices) == batch.min:
                for result in ran[REFERENCE]:
                    add_token_counts(rows, result)
        counts[temperature] = rows
    return counts


def add_token_counts(counts: TokenCounts, result: RunResult) -> None:
    """Add a row for one batch."""
    for layer in result.layers:
        if layer.index == 0:
            counts.setdefault(layer.encoder, []).append([])
        counts[layer.encoder][-1].append(layer.tokens)
