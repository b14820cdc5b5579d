"""The fourth stage: validation on the samples at two temperatures, GFLOPs, and latency of torch and the artifact."""

import ctypes
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from export.artifact.manifest import CostEntry, Gflops, LatencyEntry, Parity, Validation
from export.bench.environment import Neighbours, activity, machine, warnings
from export.bench.latency import summarize, time_rounds
from export.build.built_artifact import BuiltArtifact
from export.build.kernels import KernelsResult, run_compared, run_kernels
from export.build.opened_part import open_part
from export.build.prepare import Prepared
from export.build.torch_results import Batch, TorchResults
from export.runtime.execution import BODIES, Execution
from export.runtime.onnx_runner import OnnxRunner
from export.runtime.plan_runner import PlanRunner
from export.validate.artifact_runners import KERNELS_RUNNER
from export.validate.comparator import (
    REFERENCE,
    Judge,
    PairResult,
    TokenCounts,
    add_token_counts,
    batches_of,
)
from export.validate.intermediates import kept_ids_runners, open_onnx_intermediates
from export.validate.model_runner import (
    ArtifactRunner,
    Inputs,
    TorchModelRunner,
    cast_model,
    run_kept_ids,
    with_kept_ids,
)
from export.validate.packed_batch import split_requests
from export.validate.run_result import RunResult
from export.validate.teacher_forcing import GeneratedText
from export.validate.tolerances import Bounds, tolerance_of
from madtp.checkpoint.loading import Model
from madtp.data.samples import collate
from madtp.models.parts import parts_of
from madtp.tasks.requests import Runner, Runners, run_request, torch_runners

LATENCY_SECONDS = 6.0


@dataclass(frozen=True)
class ExportValidation:
    """What an export measured of its artifact.

    Attributes:
        samples: origin of the samples.
        pairs: torch and the artifact, at the default temperature, then dense where that differs.
        token_counts: torch's, by temperature.
        times: milliseconds of every call with the smallest batch, "torch dense", "torch pruned", "artifact dense", ...
        validated: "artifact", or "onnx" where the plan cannot be run on this machine.
        caveats: what makes latencies worth less, a sentence each.
        kernels: of the op library; None where no library runs the file, and of a plan. The file is right without them.
    """

    samples: str
    pairs: tuple[PairResult, ...]
    token_counts: Mapping[float, TokenCounts]
    gflops: Gflops
    times: Mapping[str, list[float]]
    validated: Literal["artifact", "onnx"]
    caveats: tuple[str, ...] = ()
    kernels: KernelsResult | None = None

    @property
    def passed(self) -> bool:
        """The artifact is within tolerance at every temperature."""
        return all(pair.passed for pair in self.pairs)

    @property
    def parity(self) -> tuple[Parity, ...]:
        """The manifest's entry for every temperature."""
        return tuple(parity_of(pair, self.token_counts[pair.temperature]) for pair in self.pairs)

    def entry(self) -> Validation:
        """The manifest's `validation`; only written when it passed."""
        return Validation(
            artifact="passed" if self.validated == "artifact" else "not run",
            validated=self.validated,
            samples=self.samples,
            parity=self.parity,
            gflops=self.gflops,
            latency={name: _latency(times) for name, times in self.times.items()},
            machine="; ".join([f"{platform.machine()}, {torch.get_num_threads()} threads", *self.caveats]),
            kernels=None if self.kernels is None else self.kernels.entry(),
        )


def parity_of(pair: PairResult, counts: TokenCounts) -> Parity:
    """The manifest's entry of a pair."""
    floats = [output for output in pair.outputs.values() if output.cosine is not None]
    worst = max(floats, key=lambda output: output.worst, default=None)
    return Parity(
        temperature=pair.temperature,
        requests=pair.requests,
        worst=0.0 if worst is None else worst.worst,
        worst_output="" if worst is None else worst.output,
        tolerance=max((output.most_allowed for output in floats), default=0.0),
        decisions_equal=pair.same_answers,
        layers_equal=pair.selection.layers_equal,
        layers=len(pair.selection.layers),
        explained=pair.excluded,
        failures=(*(failure.text for failure in pair.failures), *pair.damage),
        mean_tokens={name: tuple(torch.tensor(rows).double().mean(dim=0).tolist()) for name, rows in counts.items()},
        cost=None if pair.cost is None else CostEntry(**pair.cost.entry()),
    )


def _latency(times: list[float]) -> LatencyEntry:
    latency = summarize(times)
    return LatencyEntry(latency.p50, latency.p10, latency.p90, latency.calls)


def validate(
    prepared: Prepared, built: BuiltArtifact, results: TorchResults, on_detail: Callable[[str], None]
) -> ExportValidation:
    """Compare the artifact with torch on all samples, and time both.

    Torch, the copy of the artifact that shows kept ids, the artifact and the fp64 reference run one after the other, so
    that memory holds one of them at a time (timing takes torch and the artifact).

    Raises:
        BackendError: the artifact failed to run.
    """
    temperatures = sorted({prepared.temperature, 0.0}, reverse=True)
    groups = batches_of(prepared.samples, prepared.batch)
    batches = [Batch(tuple(group), temperature) for temperature in temperatures for group in groups]
    packed = prepared.options.packed
    expected = list(dict.fromkeys(one for batch in batches for one in batch.requests)) if packed else batches
    for batch in _announced(expected, "torch", on_detail):
        results.result(batch)
    gflops = results.gflops(prepared.temperature)
    results.free_model()
    _give_memory_back()
    runs_plan = prepared.options.engine.suffix == ".plan" and prepared.backend.can_run
    # Plans are compared by token counts: one that has the ids as outputs would have to be built too.
    ids = {} if runs_plan else _kept_ids(prepared, built, results, on_detail, batches)
    _give_memory_back()
    answers, times, caveats = _run_artifact(prepared, built, results, batches, runs_plan, on_detail)
    answers |= {batch: with_kept_ids(answers[batch], kept) for batch, kept in ids.items()}
    kernels = None
    if prepared.options.engine.suffix == ".onnx":
        on_detail("kernels of the op library")
        _give_memory_back()
        kernels = run_kernels(
            prepared, built, results, batches, partial(_kept_ids, prepared, built, results, on_detail)
        )
    name = "plan" if runs_plan else "onnx"
    found = {name: answers} if kernels is None else {name: answers, KERNELS_RUNNER: kernels.answers}
    pairs = _judge(prepared, results, found, on_detail)
    kernels = None if kernels is None else kernels.compared(pairs)
    counts: dict[float, TokenCounts] = {temperature: {} for temperature in temperatures}
    for batch in batches:
        if len(batch.samples) == prepared.batch.min:
            for one in batch.requests if packed else [batch]:
                add_token_counts(counts[batch.temperature], results.result(one))
    return ExportValidation(
        samples=prepared.samples.origin,
        pairs=tuple(pair for pair in pairs if pair.pair == f"{REFERENCE}/{name}"),
        token_counts=counts,
        gflops=gflops,
        times=times,
        validated="artifact" if prepared.backend.can_run else "onnx",
        caveats=caveats,
        kernels=kernels,
    )


def _give_memory_back() -> None:
    """Return freed memory to the system: glibc keeps as much as a whole model when one that ran is closed."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other libraries have none
    if trim is not None:
        trim(0)


def _announced(batches: Sequence[Batch], runner: str, on_detail: Callable[[str], None]) -> Iterator[Batch]:
    """The batches, each told before it runs."""
    for number, batch in enumerate(batches):
        on_detail(f"{runner}: batch {number + 1} of {len(batches)}, temperature {batch.temperature:g}")
        yield batch


def _kept_ids(
    prepared: Prepared,
    built: BuiltArtifact,
    results: TorchResults,
    on_detail: Callable[[str], None],
    batches: Sequence[Batch],
    execution: Execution = BODIES,
) -> dict[Batch, list[Tensor]]:
    """The ids of the tokens that the artifact keeps, by batch, from a copy that has them as outputs."""
    pruned = [batch for batch in batches if batch.temperature > 0]
    if not pruned:
        return {}
    files = {name: part.traced.runnable for name, part in built.parts.items() if part.traced.part.encoders}
    runners = kept_ids_runners(files, open_onnx_intermediates(files, execution))
    if runners.keys() != files.keys():  # a part shows none
        return {}
    return {
        batch: run_kept_ids(prepared.config, runners, results.inputs(batch), batch.temperature)
        for batch in _announced(pruned, "kept ids", on_detail)
    }


def _run_artifact(
    prepared: Prepared,
    built: BuiltArtifact,
    results: TorchResults,
    batches: Sequence[Batch],
    runs_plan: bool,
    on_detail: Callable[[str], None],
) -> tuple[dict[Batch, RunResult], Mapping[str, list[float]], tuple[str, ...]]:
    """The artifact's results by batch; milliseconds of its calls and torch's, and what makes these worth less."""
    runners = _open(prepared, built, runs_plan)
    parts = {name: part.traced.part for name, part in built.parts.items()}
    artifact = ArtifactRunner("artifact", prepared.config, parts, runners, {})
    answers = {
        batch: run_compared(prepared, artifact, results, batch) for batch in _announced(batches, "artifact", on_detail)
    }
    on_detail("timing")
    torch_parts = torch_runners(parts_of(prepared.load_model()))  # float32: what a user would run on a CPU
    before, neighbours = activity(), Neighbours()
    inputs = collate(prepared.samples.requests[: prepared.batch.min], prepared.config)
    calls = {
        "torch dense": lambda: run_request(prepared.config, torch_parts, inputs, 0.0),
        "artifact dense": lambda: run_request(prepared.config, runners, inputs, 0.0),
        "torch pruned": lambda: run_request(prepared.config, torch_parts, inputs, prepared.temperature),
        "artifact pruned": lambda: run_request(prepared.config, runners, inputs, prepared.temperature),
    }
    times = time_rounds(calls, seconds=LATENCY_SECONDS)
    return answers, times, tuple(warnings(machine(None), before, activity(), neighbours.share()))


def _open(prepared: Prepared, built: BuiltArtifact, runs_plan: bool) -> Runners:
    """Runners of the artifact's parts; of the ONNX that they were built from where the plans cannot run here."""

    def open_engine(plan: str, runnable: Path) -> Runner:
        if not runs_plan:
            return OnnxRunner(runnable)
        return PlanRunner(built.folder / plan, prepared.backend, built.library_path, prepared.options.embed_plugins)

    return {name: open_part(part, open_engine) for name, part in built.parts.items()}


def _judge(
    prepared: Prepared,
    results: TorchResults,
    found: Mapping[str, Mapping[Batch, RunResult]],
    on_detail: Callable[[str], None],
) -> tuple[PairResult, ...]:
    """Compare results of runners, by name and batch, with torch's and with each other."""
    fp64 = _Fp64Reference(prepared.load_model)
    judge = Judge(prepared.config, fp64, Bounds(tolerance_of(prepared.options.precision)), always_fp64=False)
    batches = dict.fromkeys(batch for answers in found.values() for batch in answers)
    for batch in _announced(list(batches), "comparing", on_detail):
        given = {name: answers[batch] for name, answers in found.items() if batch in answers}
        name = f"samples {list(batch.samples)}"
        if prepared.options.packed:
            alone = [results.result(one) for one in batch.requests]
            split = {runner: split_requests(result, alone) for runner, result in given.items()}
            for index, one in enumerate(batch.requests):
                ran = {REFERENCE: alone[index], **{runner: parts[index] for runner, parts in split.items()}}
                which = f"{name}, request {index}" if len(alone) > 1 else name
                judge.judge(which, results.inputs(one), batch.temperature, ran)
        else:
            judge.judge(name, results.inputs(batch), batch.temperature, {REFERENCE: results.result(batch), **given})
    return tuple(judge.results.values())


class _Fp64Reference:
    """The fp64 reference, which is read when a batch needs it: it takes twice the checkpoint."""

    name = "torch fp64"

    def __init__(self, load_model: Callable[[], Model]) -> None:
        self._load_model = load_model

    @cached_property
    def _runner(self) -> TorchModelRunner:
        model = cast_model(self._load_model(), torch.float64)  # and nobody keeps the one that it is made of
        return TorchModelRunner(self.name, model, torch.float64)

    def run(self, inputs: Inputs, temperature: float) -> RunResult:
        return self._runner.run(inputs, temperature)

    def text_logits(self, text: GeneratedText) -> Tensor:
        return self._runner.text_logits(text)
