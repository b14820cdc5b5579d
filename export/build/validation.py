"""The fourth stage: validation on the samples at two temperatures, GFLOPs, and latency of torch and the artifact."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from export.artifact.manifest import Gflops, LatencyEntry, Parity, Validation
from export.bench.environment import Neighbours, activity, machine, warnings
from export.bench.latency import summarize, time_rounds
from export.build.built_artifact import BuiltArtifact
from export.build.gflops import model_gflops
from export.build.prepare import Prepared
from export.runtime.checked import CheckedRunner
from export.runtime.onnx_runner import OnnxRunner
from export.runtime.plan_runner import PlanRunner
from export.validate.comparator import Comparator, PairResult, TokenCounts, compare_samples
from export.validate.intermediates import kept_ids_runners, open_onnx_intermediates
from export.validate.model_runner import ArtifactRunner, TorchModelRunner
from export.validate.tolerances import Bounds, tolerance_of
from madtp.data.samples import collate
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
    """

    samples: str
    pairs: tuple[PairResult, ...]
    token_counts: Mapping[float, TokenCounts]
    gflops: Gflops
    times: Mapping[str, list[float]]
    validated: Literal["artifact", "onnx"]
    caveats: tuple[str, ...] = ()

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
        failures=tuple(failure.text for failure in pair.failures),
        mean_tokens={name: tuple(torch.tensor(rows).double().mean(dim=0).tolist()) for name, rows in counts.items()},
    )


def _latency(times: list[float]) -> LatencyEntry:
    latency = summarize(times)
    return LatencyEntry(latency.p50, latency.p10, latency.p90, latency.calls)


def validate(prepared: Prepared, built: BuiltArtifact, on_detail: Callable[[str], None]) -> ExportValidation:
    """Compare the artifact with torch on all samples, and time both.

    Raises:
        BackendError: the artifact failed to run.
    """
    config, samples, temperature = prepared.config, prepared.samples, prepared.temperature
    runs_plan = prepared.options.engine.suffix == ".plan" and prepared.backend.can_run
    files = {name: part.traced.source for name, part in built.parts.items()}
    # First, because ONNX Runtime holds weights twice while it opens. Plans are compared by token counts: one that has
    # the ids as outputs would have to be built too.
    kept_ids = {} if runs_plan else kept_ids_runners(files, open_onnx_intermediates(files))
    runners = _open(prepared, built, runs_plan)
    reference = TorchModelRunner("torch", prepared.load_model(), tolerance_of(prepared.options.precision).dtype)
    artifact = ArtifactRunner("plan" if runs_plan else "onnx", config, reference.parts, runners, kept_ids)
    pairs, counts = _compare(prepared, reference, artifact, on_detail)
    on_detail("counting GFLOPs")
    gflops = model_gflops(reference.model, samples, temperature)
    on_detail("timing")
    before, neighbours = activity(), Neighbours()
    inputs = collate(samples.requests[: prepared.batch.min], config)
    torch_parts = torch_runners(reference.parts)
    times = time_rounds(
        {
            "torch dense": lambda: run_request(config, torch_parts, inputs, 0.0),
            "artifact dense": lambda: run_request(config, runners, inputs, 0.0),
            "torch pruned": lambda: run_request(config, torch_parts, inputs, temperature),
            "artifact pruned": lambda: run_request(config, runners, inputs, temperature),
        },
        seconds=LATENCY_SECONDS,
    )
    return ExportValidation(
        samples=samples.origin,
        pairs=pairs,
        token_counts=counts,
        gflops=gflops,
        times=times,
        validated="artifact" if prepared.backend.can_run else "onnx",
        caveats=tuple(warnings(machine(None), before, activity(), neighbours.share())),
    )


def _open(prepared: Prepared, built: BuiltArtifact, runs_plan: bool) -> Runners:
    """Runners of the artifact's parts; of the ONNX that they were built from where the plans cannot run here."""
    runners = {}
    for name, part in built.parts.items():
        runner: Runner = (
            PlanRunner(
                built.folder / part.files[0], prepared.backend, built.library_path, prepared.options.embed_plugins
            )
            if runs_plan
            else OnnxRunner(part.traced.source)
        )
        runners[name] = CheckedRunner(runner, part.traced.inputs, part.traced.outputs, part.profile)
    return runners


def _compare(
    prepared: Prepared, reference: TorchModelRunner, artifact: ArtifactRunner, on_detail: Callable[[str], None]
) -> tuple[tuple[PairResult, ...], Mapping[float, TokenCounts]]:
    """Compare the artifact with torch at the default temperature and dense."""
    fp64 = TorchModelRunner("torch fp64", reference.model, torch.float64)
    bounds = Bounds(tolerance_of(prepared.options.precision))
    comparator = Comparator(reference, fp64, [artifact], bounds, always_fp64=False)
    temperatures = sorted({prepared.temperature, 0.0}, reverse=True)
    counts = compare_samples(comparator, prepared.config, prepared.samples, temperatures, prepared.batch, on_detail)
    pairs = tuple(comparator.results.values())
    for error in (failure.error for pair in pairs for failure in pair.failures):
        if error is not None:  # the runtime is at fault, not the artifact's answers
            raise error
    return pairs, counts
