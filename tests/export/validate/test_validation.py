"""The pieces of a validation: which tokens differ and why, what may differ, and which node it is."""

import copy
import io
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import run
from typing import Any

import onnx
import pytest
import torch
from rich.console import Console

import madtp
from export.artifact.manifest import SamplesEntry
from export.errors import OptionError
from export.graph.onnx_graph import OnnxGraph
from export.validate.batch_invariance import BatchInvariance, batch_invariance
from export.validate.comparator import Comparator
from export.validate.divergent_node import DivergentNode, first_divergent_node, record_calls
from export.validate.model_runner import TorchModelRunner
from export.validate.outputs import OutputAgreement, compare_outputs
from export.validate.repro import save_repro
from export.validate.result import ValidationResult
from export.validate.run_result import LayerTokens, RunResult
from export.validate.selection import Selection, count_margin, differing_tokens, score_errors
from export.validate.table import result_table
from export.validate.tolerances import TOLERANCES, Bounds, parse_tolerances
from madtp.checkpoint.loading import Model
from madtp.data.items import spread
from madtp.data.samples import collate, load_samples
from madtp.ops.recorder import CompactRecord
from madtp.tasks.requests import Outputs
from tests.helpers.checkpoints import write_task_checkpoint
from tests.helpers.defects import MUTATIONS, change_matmul, insert_node, node_of

DEMO = Path(madtp.__file__).parent / "demo" / "nlvr-digits.pt"
FP32 = TOLERANCES["fp32"]
SCORES = (0.4, 0.3, 0.2, 0.1, 0.05)  # of tokens 1 to 5; mean 0.21


def record(threshold: float, keep: int, scores: tuple[float, ...] = SCORES) -> CompactRecord:
    """One sequence of which `keep` tokens stay."""
    importance = torch.tensor([scores], dtype=torch.float64)
    ranked = importance[0].sort(descending=True, stable=True).indices + 1
    kept = [*sorted(ranked[: keep - 1].tolist()), int(ranked[keep - 1])]
    return CompactRecord(
        layer=0,
        importance=importance,
        threshold=torch.tensor([threshold], dtype=torch.float64),
        counts=torch.tensor([keep]),
        keep=keep,
        pruned=True,
        tokens_out=keep + 2,
        source_ids=torch.tensor([[0, *kept, -1]], dtype=torch.int32),
        entering_ids=torch.arange(len(scores) + 1, dtype=torch.int32)[None],
        min_keep=1,
    )


def layers(of: CompactRecord, ids: list[int] | None, tokens: int | None = None) -> tuple[LayerTokens, LayerTokens]:
    shown = None if ids is None else torch.tensor([ids], dtype=torch.int32)
    count = len(ids) if ids is not None else tokens or 0
    return LayerTokens("vision", 0, of.tokens_out, of.source_ids, of), LayerTokens("vision", 0, count, shown)


def test_a_token_at_the_threshold_is_explained_and_another_is_not() -> None:
    near, far = record(0.2 - 1e-7, keep=3), record(0.15, keep=3)
    for made, explained in ((near, True), (far, False)):
        (found,) = differing_tokens(*layers(made, [0, 1, 2, -1]), FP32.score)
        assert (found.source_id, found.decided_by, found.explained) == (3, "threshold", explained)
        assert found.margin == pytest.approx((0.2 - float(made.threshold)) / 0.21)


def test_every_token_between_two_counts_counts() -> None:
    """One token at the threshold does not explain that two are missing."""
    found = differing_tokens(*layers(record(0.2 - 1e-7, keep=3), [0, 1, -1]), FP32.score)
    assert [difference.source_id for difference in found] == [2, 3]
    assert not any(difference.explained for difference in found)


def test_more_tokens_than_torch_keeps_need_a_score_below_the_threshold_to_rise() -> None:
    made = record(0.1 + 1e-7, keep=3)
    assert count_margin(made, tokens=6) == pytest.approx(1e-7 / 0.21)  # four of five kept is not worth while: all stay
    assert count_margin(made, tokens=5) == 0
    (found,) = differing_tokens(*layers(made, None, tokens=6), FP32.score)
    assert found.source_id is None
    assert found.explained


@pytest.mark.parametrize(
    ("scores", "explained"), [((0.4, 0.3, 0.2, 0.2 - 1e-7, 0.05), True), (SCORES, False)], ids=["tie", "no tie"]
)
def test_a_token_of_another_rank(scores: tuple[float, ...], explained: bool) -> None:
    found = differing_tokens(*layers(record(0.19, keep=3, scores=scores), [0, 1, 2, 4, -1]), FP32.score)
    assert [(difference.source_id, difference.decided_by) for difference in found] == [(3, "rank"), (4, "rank")]
    assert {difference.explained for difference in found} == {explained}


@pytest.mark.parametrize(
    ("ids", "decided_by"),
    [([0, 1, 3, 2, -1], "order"), ([0, 2, 1, 3, -1], "ids"), ([0, 1, 2, 3, -2], "ids"), ([0, 1, 2, 9, -1], "ids")],
)
def test_ids_that_no_rounding_gives(ids: list[int], decided_by: str) -> None:
    found = differing_tokens(*layers(record(0.15, keep=3), ids), FP32.score)
    assert {difference.decided_by for difference in found} == {decided_by}
    assert not any(difference.explained for difference in found)


def test_scores_that_are_not_finite_explain_nothing() -> None:
    made = record(0.15, keep=3)
    made.importance[0, 0] = float("nan")
    assert not any(token.explained for token in differing_tokens(*layers(made, [0, 1, 2, -1]), FP32.score))


def test_scores_may_err_by_twice_what_torch_s_own_do_as_long_as_that_can_be_measured() -> None:
    exact = record(0.15, keep=3)
    other = record(0.15, keep=3, scores=tuple(score + 0.002 for score in SCORES))
    fewer = record(0.25, keep=2)

    def answer(*records: CompactRecord) -> RunResult:
        return RunResult(
            {},
            [
                LayerTokens("vision", index, made.tokens_out, made.source_ids, made)
                for index, made in enumerate(records)
            ],
        )

    errors = score_errors(answer(exact, other, fewer, other), answer(exact, exact, exact, exact), FP32)
    twice = pytest.approx(2 * 0.002 / 0.21)
    assert errors == [FP32.score, twice, FP32.score, FP32.score], "after the third layer there is nothing to measure by"
    assert score_errors(answer(other), answer(exact), TOLERANCES["bf16"]) == [TOLERANCES["bf16"].score]
    other.importance[0, 0] = float("nan")
    assert score_errors(answer(other), answer(exact), FP32) == [FP32.score]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_token_that_the_precision_lets_flip_is_explained(precision: str) -> None:
    """The demo's model in the precision against float64: the same program, so rounding is all that differs."""
    model = madtp.load(DEMO)
    tolerance = TOLERANCES[precision]
    rounded = TorchModelRunner("torch", model, tolerance.dtype)
    exact = TorchModelRunner("torch fp64", model, torch.float64)
    selection = Selection()
    for request in load_samples(None, DEMO, model.config).requests:
        inputs = collate([request], model.config)
        left, right = (runner.run(inputs, model.temperature) for runner in (rounded, exact))
        selection.add(left, right, score_errors(left, right, tolerance))
    assert selection.differences
    assert all(difference.explained for difference in selection.differences)


def test_selection_names_the_first_layer_and_measures_all() -> None:
    made = record(0.15, keep=3)
    left, right = layers(made, [0, 1, 2, -1])
    same = LayerTokens("vision", 1, left.tokens, left.source_ids)
    selection = Selection()
    selection.add(RunResult({}, [left, same]), RunResult({}, [right, same]), [FP32.score] * 2)
    assert [(difference.layer, difference.source_id) for difference in selection.differences] == [(0, 3)]
    assert [layer.equal for layer in selection.layers] == [0, 1]
    assert selection.layers[0].jaccards == [4 / 5]
    assert selection.layers[0].tokens == [(5, 4)]


def outputs(values: list[list[float]]) -> Outputs:
    return {"logits": torch.tensor(values, dtype=torch.float64)}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([[1.0, 2.0 + 0.9e-4]], ""),
        ([[1.0, 2.0 + 3e-4]], "allowed 2e-04"),
        ([[float("nan"), 2.0]], "differ by nan"),
        ([[2.0, 1.0]], "decisions differ"),
    ],
    ids=["within", "beyond", "nan", "another answer"],
)
def test_the_floor_bounds_the_error(answer: list[list[float]], words: str) -> None:
    expected = outputs([[1.0, 2.0]])
    found = compare_outputs({}, expected, outputs(answer), expected, expected, Bounds(FP32))
    assert (words in " ".join(found)) if words else not found


def test_the_error_may_be_twice_that_of_torch_in_the_same_precision() -> None:
    exact, rounded, other = outputs([[1.0, 3.0]]), outputs([[1.01, 3.0]]), outputs([[0.981, 3.0]])
    assert not compare_outputs({}, rounded, other, rounded, exact, Bounds(FP32))
    (failure,) = compare_outputs({}, rounded, outputs([[0.979, 3.0]]), rounded, exact, Bounds(FP32))
    assert "against the fp64 reference is 2.10e-02" in failure
    assert compare_outputs({}, rounded, other, rounded, None, Bounds(FP32)), "without it, the floor alone"
    assert not compare_outputs({}, rounded, other, rounded, None, Bounds(FP32, {"logits": 0.03}))


@pytest.mark.parametrize("text", ["logits", "=1", "logits=x", "logits=-1", "logits=nan", "logits=inf"])
def test_tolerances_that_are_none(text: str) -> None:
    with pytest.raises(OptionError, match="--tolerance is"):
        parse_tolerances([text])


def test_dependence_on_batch_mates_is_a_failure_of_packed_engines_only() -> None:
    free = BatchInvariance("onnx", "hostile", 0, slots=4, tokens=0, answers=0, spread=0)
    bound = BatchInvariance("onnx", "hostile", 0, slots=4, tokens=3, answers=0, spread=0)
    assert [free.failure("dynamic"), free.failure("packed"), bound.failure("dynamic")] == ["", "", ""]
    assert "other tokens in 3" in bound.failure("packed")


def test_a_limit_spreads_evenly() -> None:
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread(range(3), 32) == [0, 1, 2]


def test_a_longer_text_counts_as_one_decision() -> None:
    expected = {"caption_ids": torch.tensor([[1, 9, 2], [1, 9, 2]])}
    actual = {"caption_ids": torch.tensor([[1, 9, 2, 0], [1, 9, 9, 2]])}
    totals: dict[str, OutputAgreement] = {}
    (failure,) = compare_outputs(totals, expected, actual, expected, None, Bounds(FP32))
    assert failure.startswith("1 decisions differ")
    assert (totals["caption_ids"].decided, totals["caption_ids"].decisions) == (1, 2)


def result_of(*texts: list[int]) -> list[RunResult]:
    """A batch of captions and their token counts."""
    return [RunResult({"caption_ids": torch.tensor(texts), "vision_token_counts": torch.ones(len(texts), 2)}, [])]


def test_a_longer_text_in_the_batch_does_not_change_the_answer_of_another_request() -> None:
    alone = result_of([1, 9, 2])
    slots = [result_of([1, 9, 2, 0], [1, 9, 9, 2]), result_of([1, 9, 9, 2], [1, 9, 2, 0])]
    found = batch_invariance("torch", "ordinary", 0, alone, slots, pad_id=0)
    assert (found.slots, found.answers, found.spread) == (2, 0, 0)


def test_another_text_in_a_batch_is_another_answer() -> None:
    slots = [result_of([1, 9, 2, 0], [1, 9, 9, 2]), result_of([1, 9, 9, 2], [1, 8, 2, 0])]
    assert batch_invariance("torch", "ordinary", 0, result_of([1, 9, 2]), slots, pad_id=0).answers == 1


# Precisions.


@pytest.fixture(scope="module")
def model(tiny_artifact: Path) -> Model:
    return madtp.load(tiny_artifact / "tiny.pt")


@pytest.mark.parametrize(("precision", "passes"), [("fp16", True), ("bf16", True), ("fp32", False)])
def test_tolerances_tell_precisions_apart(precision: str, passes: bool, model: Model, tiny_artifact: Path) -> None:
    """A model of the precision passes; a bfloat16 model does not pass for float32."""
    bounds = Bounds(TOLERANCES[precision])
    reference = TorchModelRunner("torch", model, bounds.tolerance.dtype)
    fp64 = TorchModelRunner("torch fp64", model, torch.float64)
    held = bounds.tolerance.dtype if passes else torch.bfloat16
    comparator = Comparator(reference, fp64, [TorchModelRunner("onnx", model, held)], bounds)
    inputs = collate(load_samples(None, tiny_artifact / "tiny.pt", model.config).requests[:2], model.config)
    comparator.compare("two samples", inputs, 0.0)
    (result,) = comparator.results.values()
    assert result.passed is passes, result.failures
    assert result.against_fp64 == 2


class Noted:
    """The fp64 reference, and how often it ran."""

    def __init__(self, model: Model) -> None:
        self.runs = 0
        self._runner = TorchModelRunner("torch fp64", model, torch.float64)

    def run(self, inputs: Any, temperature: float) -> RunResult:
        self.runs += 1
        return self._runner.run(inputs, temperature)


@pytest.mark.parametrize(("dtype", "always", "runs"), [("fp32", False, 0), ("bf16", False, 1), ("fp32", True, 1)])
def test_the_fp64_reference_runs_where_it_is_needed(
    dtype: str, always: bool, runs: int, model: Model, tiny_artifact: Path
) -> None:
    fp64: Any = Noted(model)
    reference = TorchModelRunner("torch", model, torch.float32)
    other = TorchModelRunner("onnx", model, TOLERANCES[dtype].dtype)
    comparator = Comparator(reference, fp64, [other], Bounds(FP32), always_fp64=always)
    inputs = collate(load_samples(None, tiny_artifact / "tiny.pt", model.config).requests[:2], model.config)
    comparator.compare("two samples", inputs, 0.0)
    assert fp64.runs == runs


class OneLongerText(TorchModelRunner):
    """Torch, but the first of the texts that it generates is longer."""

    def run(self, inputs: Any, temperature: float) -> RunResult:
        result = super().run(inputs, temperature)
        ids = torch.nn.functional.pad(result.outputs["caption_ids"], (0, 2))
        ids[0, -1] = 9
        return replace(result, outputs={**result.outputs, "caption_ids": ids})


def test_one_longer_text_fails_alone_and_leaves_the_text_logits_as_they_are(tmp_path: Path) -> None:
    checkpoint = write_task_checkpoint("caption", tmp_path / "tiny.pt")
    model = madtp.load(checkpoint)
    reference = TorchModelRunner("torch", model, torch.float32)
    fp64 = TorchModelRunner("torch fp64", model, torch.float64)
    comparator = Comparator(reference, fp64, [OneLongerText("onnx", model, torch.float32)], Bounds(FP32))
    inputs = collate(load_samples(None, checkpoint, model.config).requests[:3], model.config)
    comparator.compare("three samples", inputs, 0.0)
    (result,) = comparator.results.values()
    (failure,) = result.failures
    assert "1 decisions differ (caption_ids)" in failure.text
    assert (result.compared, result.same_answers) == (3, 2)
    assert result.outputs["text_logits"].worst == 0


@pytest.mark.parametrize("task", ["vqa", "caption"])
def test_a_decoder_that_is_off_fails_though_it_writes_the_same_text(task: str, tmp_path: Path) -> None:
    checkpoint = write_task_checkpoint(task, tmp_path / "tiny.pt")
    model = madtp.load(checkpoint)
    changed = copy.deepcopy(model)
    table = changed.text_decoder.bert.embeddings.position_embeddings.weight
    table.data[2:] *= 1.005  # no first word tells
    runners = [TorchModelRunner(name, held, torch.float32) for name, held in (("torch", model), ("onnx", changed))]
    fp64 = TorchModelRunner("torch fp64", model, torch.float64)
    comparator = Comparator(runners[0], fp64, runners[1:], Bounds(FP32))
    inputs = collate(load_samples(None, checkpoint, model.config).requests[:2], model.config)
    answers = comparator.compare("two samples", inputs, 0.0)
    written = "answer_ids" if task == "vqa" else "caption_ids"
    assert torch.equal(answers["torch"][0].outputs[written], answers["onnx"][0].outputs[written])
    (result,) = comparator.results.values()
    (failure,) = result.failures
    assert "text_logits differ by" in failure.text


# Bisecting.


@pytest.fixture(scope="module")
def reference(tiny_artifact: Path) -> OnnxGraph:
    return OnnxGraph.read(tiny_artifact / "out.onnx")


def bisect(model: Model, reference: OnnxGraph, artifact: OnnxGraph) -> DivergentNode | None:
    runner = TorchModelRunner("torch", model, torch.float32)
    inputs = collate(load_samples(None, reference.folder / "tiny.pt", model.config).requests[:2], model.config)
    calls = record_calls(model.config, runner.runners, inputs, model.temperature)
    return first_divergent_node(calls, {"model": reference}, {"model": artifact}, FP32.node, lambda _: None)


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_bisecting_names_exactly_the_node_that_was_changed(
    mutate: Callable[[onnx.GraphProto], onnx.NodeProto], model: Model, reference: OnnxGraph, tmp_path: Path
) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(reference.model)
    node = mutate(changed.graph)
    divergent_node = bisect(model, reference, OnnxGraph(changed, reference.folder))
    assert divergent_node is not None
    assert (divergent_node.node, divergent_node.op) == (node.name, node.op_type)
    assert divergent_node.why
    assert divergent_node.nodes == (2 if mutate is insert_node else 1)
    assert ("run together with Mul 'inserted' before it" in str(divergent_node)) is (mutate is insert_node)


def test_another_float_type_is_told_from_another_value(model: Model, reference: OnnxGraph, tmp_path: Path) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(reference.model)
    node = node_of(changed.graph, "Gelu")
    value, index = node.output[0], list(changed.graph.node).index(node)
    node.output[0] = "exact"
    to = onnx.TensorProto.FLOAT16
    changed.graph.node.insert(index + 1, onnx.helper.make_node("Cast", ["exact"], [value], "rounded", to=to))
    changed.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))  # as graph optimisers do
    divergent_node = bisect(model, reference, OnnxGraph(changed, reference.folder))
    assert divergent_node is not None
    assert (divergent_node.node, divergent_node.why) == (
        "rounded",
        ["the checkpoint's is of op Gelu", "it gives float16, not float32"],
    )
    assert 1e-5 < divergent_node.difference < 1e-3


def test_bisecting_names_the_first_node_of_a_changed_function_body(model: Model, reference: OnnxGraph) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(reference.model)
    (body,) = (function for function in changed.functions if function.name == "AlignedAttention")
    node_of(body, "ReduceL2").op_type = "ReduceL1"
    divergent_node = bisect(model, reference, OnnxGraph(changed, reference.folder))
    assert divergent_node is not None
    assert divergent_node.node == node_of(changed.graph, "AlignedAttention").name
    assert divergent_node.why == ["its function body is another"]


def test_bisecting_an_artifact_that_is_right_names_nothing(model: Model, reference: OnnxGraph) -> None:
    assert bisect(model, reference, reference) is None


def test_the_saved_node_shows_the_difference(model: Model, reference: OnnxGraph, tmp_path: Path) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(reference.model)
    change_matmul(changed.graph)
    divergent_node = bisect(model, reference, OnnxGraph(changed, reference.folder))
    assert divergent_node is not None
    for _ in range(2):  # the second replaces the first
        command = save_repro(divergent_node, tmp_path / "repro", FP32.node)
    ran = run(shlex.split(command), capture_output=True, text=True)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "FAILED" in ran.stdout


def test_the_table_fits_a_narrow_terminal_and_cuts_nothing(model: Model, tiny_artifact: Path) -> None:
    runners = [TorchModelRunner(name, model, torch.float32) for name in ("torch", "onnx")]
    fp64 = TorchModelRunner("torch fp64", model, torch.float64)
    comparator = Comparator(runners[0], fp64, runners[1:], Bounds(FP32))
    inputs = collate(load_samples(None, tiny_artifact / "tiny.pt", model.config).requests[:2], model.config)
    comparator.compare("two samples", inputs, 0.5)
    samples = SamplesEntry("samples", "two", 2, "read")
    results = list(comparator.results.values())
    result = ValidationResult("out.onnx", "nlvr", "fp32", "dynamic", samples, Bounds(FP32), results, {}, [])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(result_table(result, "a title"))
    text = console.export_text()
    assert "…" not in text
    assert all(line.rstrip()[-1] in "┓┃┩│┤┘" for line in text.splitlines()[1:-1])
