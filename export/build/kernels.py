"""The op library on an exported .onnx file: every sample alone (in the packed layout also in batches) at each
temperature, kernels against torch.

The function bodies prove the file; this proves that the library here runs it too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from export.artifact.manifest import KernelsEntry
from export.build.built_artifact import BuiltArtifact
from export.build.opened_part import open_part
from export.build.prepare import Prepared
from export.build.torch_results import Batch, TorchResults
from export.engine.op_library import OpLibrary
from export.errors import BackendError, PluginError
from export.runtime.execution import Execution, choose_execution
from export.runtime.onnx_runner import OnnxRunner
from export.validate.artifact_runners import KERNELS_RUNNER
from export.validate.comparator import REFERENCE, PairResult, pad_id_of, run_batch
from export.validate.model_runner import ArtifactRunner, ModelRunner, with_kept_ids
from export.validate.packed_batch import run_batch_of
from export.validate.run_result import RunResult

KeptIds = Callable[[Sequence[Batch], Execution], dict[Batch, list[Tensor]]]


@dataclass(frozen=True)
class KernelsResult:
    """What kernels of a library gave beside torch.

    Attributes:
        answers: results by batch; empty where they did not run, and `failed` says why.
        pairs: what comparing them found, once they are compared.
    """

    library: OpLibrary
    answers: Mapping[Batch, RunResult] = field(default_factory=dict, repr=False)
    failed: str = ""
    pairs: tuple[PairResult, ...] = ()

    def compared(self, pairs: Sequence[PairResult]) -> "KernelsResult":
        """With what of `pairs` is about torch and them."""
        return replace(self, pairs=tuple(pair for pair in pairs if pair.pair == f"{REFERENCE}/{KERNELS_RUNNER}"))

    @property
    def failures(self) -> list[str]:
        """What is wrong, a sentence each."""
        found = [failure.text for pair in self.pairs for failure in pair.failures]
        return [*([self.failed] if self.failed else []), *found, *(text for pair in self.pairs for text in pair.damage)]

    def entry(self) -> KernelsEntry:
        """What the manifest says of it."""
        library = self.library
        worst = max((output.worst for pair in self.pairs for output in pair.outputs.values()), default=0.0)
        return KernelsEntry(
            file=library.path.name,
            version=library.version,
            sha256=library.sha256,
            source_sha256=library.source_sha256,
            status="failed" if self.failures else "passed",
            requests=sum(pair.requests for pair in self.pairs),
            worst=worst if math.isfinite(worst) else None,
            failures=tuple(self.failures),
        )

    def __str__(self) -> str:
        if self.failures:
            return f"kernels of {self.library} FAILED on this file; run it with --library none: {self.failures[0]}"
        entry = self.entry()
        layers = [layer for pair in self.pairs for layer in pair.selection.layers]
        equal = sum(pair.selection.layers_equal for pair in self.pairs)
        return (
            f"kernels of {self.library} passed on {entry.requests} requests: max |difference| {entry.worst:.1e}, "
            f"{equal}/{len(layers)} layers with equal tokens"
        )


def run_kernels(
    prepared: Prepared, built: BuiltArtifact, results: TorchResults, batches: Sequence[Batch], kept_ids: KeptIds
) -> KernelsResult | None:
    """Run the smallest of the batches, or all if packed; None where no library can run the file.

    Args:
        kept_ids: gives the ids of the tokens that an execution keeps, by batch.
    """
    execution = choose_execution([part.traced.runnable for part in built.parts.values()])
    if execution.library is None:
        return None
    packed = prepared.options.packed  # the batches are its point
    alone = [batch for batch in batches if packed or len(batch.samples) == prepared.batch.min]
    try:
        answers = _run(prepared, built, results, alone, execution)
        for batch, kept in kept_ids(alone, execution).items():
            answers[batch] = with_kept_ids(answers[batch], kept)
        return KernelsResult(execution.library, answers)
    except (BackendError, PluginError) as error:
        return KernelsResult(execution.library, failed=f"{error.what}: {error.why}")


def _run(
    prepared: Prepared, built: BuiltArtifact, results: TorchResults, batches: Sequence[Batch], execution: Execution
) -> dict[Batch, RunResult]:
    runners = {
        name: open_part(part, lambda _, runnable: OnnxRunner(runnable, execution=execution))
        for name, part in built.parts.items()
    }
    parts = {name: part.traced.part for name, part in built.parts.items()}
    kernels = ArtifactRunner(KERNELS_RUNNER, prepared.config, parts, runners, {})
    return {batch: run_compared(prepared, kernels, results, batch) for batch in batches}


def run_compared(prepared: Prepared, runner: ModelRunner, results: TorchResults, batch: Batch) -> RunResult:
    """What a runner gives for a batch, with the logits of the texts that torch wrote."""
    inputs = results.inputs(batch)
    if not prepared.options.packed:
        return run_batch(runner, inputs, batch.temperature, results.result(batch))
    alone = [(results.inputs(one), results.result(one)) for one in batch.requests]
    return run_batch_of(runner, inputs, batch.temperature, alone, pad_id_of(prepared.config))
