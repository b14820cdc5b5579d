"""The runners of an artifact: ONNX Runtime on bodies and on kernels, and TensorRT where a GPU can run its plan."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from export.artifact.manifest import BucketEntry, Manifest, Part
from export.console import Progress
from export.errors import BackendError
from export.graph.capacities import set_capacities
from export.graph.precision import needs_rounding, write_runnable
from export.runtime.artifact import Artifact
from export.runtime.buckets import open_part
from export.runtime.execution import BODIES, Execution
from export.runtime.intermediates_runner import KeptIdsRunner
from export.runtime.onnx_runner import OnnxRunner
from export.runtime.runner import RunnerOptions
from export.validate.intermediates import (
    IntermediatesPlanBuilder,
    kept_ids_runners,
    open_onnx_intermediates,
    trace_parts,
    traced_model,
)
from export.validate.model_runner import ArtifactRunner, TorchModelRunner
from export.validate.quantization import passes_of
from madtp.files.staging import write_errors
from madtp.models.parts import parts_of
from madtp.tasks.requests import Runner

BODIES_RUNNER, KERNELS_RUNNER = "onnx", "kernels"  # names of an ONNX file's runners


@dataclass(frozen=True)
class ArtifactRunners:
    """What is compared with torch.

    Attributes:
        files: ONNX of every part that ONNX Runtime runs: the artifact's, or traced from the checkpoint where that is a
            plan.
        runners: ONNX Runtime on function bodies, and the kernels of the op library or the plan where they can run.
        plan_builder: rebuilds the plan's parts with values inside them as outputs; None where no plan runs.
        notes: what is compared less closely than usual and why, a sentence each.
    """

    files: dict[str, Path]
    runners: list[ArtifactRunner]
    plan_builder: IntermediatesPlanBuilder | None = None
    notes: tuple[str, ...] = ()


def open_runners(
    artifact: Artifact,
    reference: TorchModelRunner,
    scratch: Path,
    progress: Progress,
    execution: Execution | None = None,
) -> ArtifactRunners:
    """Open everything that can run here, each with the ids of the tokens that it keeps.

    Args:
        execution: of an .onnx artifact (`Artifact.execution`). With a library there are two runners: "onnx" runs the
            function bodies, and "kernels" the library.

    A plan that a tool changed shows no ids: one built anew would say nothing about it.
    """
    if not artifact.manifest.is_plan:
        progress.stage("opening the artifact")
        files, execution = artifact.part_files, execution or BODIES
        ways = {BODIES_RUNNER: Execution(execution.provider)}
        if execution.library is not None:
            ways[KERNELS_RUNNER] = execution
        runners = []
        for name, way in ways.items():
            opened = artifact.open_runners(RunnerOptions(execution=way))
            runners.append(_runner(name, reference, opened, _onnx_kept_ids(files, way)))
        return ArtifactRunners(files, runners)
    progress.stage("tracing the checkpoint to ONNX")
    form = artifact.manifest.graph_form
    model = traced_model(artifact.manifest, reference.model)
    passes = passes_of(artifact.manifest, model)
    networks = trace_parts(parts_of(model), scratch, progress.detail, *form, runnable=False, passes_of=passes)
    files = _runnable(networks, artifact.manifest.precision)
    onnx = _runner(BODIES_RUNNER, reference, _open_traced(artifact.manifest, files), _onnx_kept_ids(files))
    if not artifact.backend.can_run:
        return ArtifactRunners(files, [onnx])
    plan = artifact.open_runners()
    if artifact.changed:
        note = "compared token counts only for the changed plan: it has no outputs that tell kept-token ids"
        return ArtifactRunners(files, [onnx, _runner("plan", reference, plan, {})], notes=(note,))
    builder = IntermediatesPlanBuilder.of_artifact(artifact, networks, progress.detail)
    kept_ids, notes = _plan_kept_ids(files, builder, progress.detail)
    return ArtifactRunners(files, [onnx, _runner("plan", reference, plan, kept_ids)], builder, notes)


def _runnable(networks: Mapping[str, Path], precision: str) -> dict[str, Path]:
    """ONNX files for TensorRT as ONNX Runtime runs them."""
    if not needs_rounding(precision):
        return dict(networks)
    files = {part: path.with_name(f"runnable-{path.name}") for part, path in networks.items()}
    for part, path in files.items():
        with write_errors(path):
            write_runnable(networks[part], path)
    return files


def _runner(
    name: str, reference: TorchModelRunner, parts: Mapping[str, Runner], kept_ids: Mapping[str, KeptIdsRunner]
) -> ArtifactRunner:
    return ArtifactRunner(name, reference.config, reference.parts, parts, kept_ids)


def _onnx_kept_ids(files: Mapping[str, Path], execution: Execution = BODIES) -> dict[str, KeptIdsRunner]:
    return kept_ids_runners(files, open_onnx_intermediates(files, execution))


def _plan_kept_ids(
    files: Mapping[str, Path], builder: IntermediatesPlanBuilder, on_detail: Callable[[str], None]
) -> tuple[dict[str, KeptIdsRunner], tuple[str, ...]]:
    on_detail("building a plan whose outputs include the ids of kept tokens")
    try:
        return kept_ids_runners(files, builder), ()
    except BackendError as error:  # no reason not to compare the plan itself
        return {}, (f"compared token counts only for the plan: one with kept-token ids failed to build: {error.what}",)


def _open_traced(manifest: Manifest, files: Mapping[str, Path]) -> dict[str, Runner]:
    """Traced ONNX files in ONNX Runtime, with the buckets and profiles of the artifact."""

    def open_engine(engine: Part | BucketEntry, whole: Path) -> OnnxRunner:
        if isinstance(engine, Part):
            return OnnxRunner(whole)
        sized = whole.with_name(f"{Path(engine.artifact).stem}-{whole.name}")
        set_capacities(whole, sized, engine.rows)
        return OnnxRunner(sized)

    return {part.name: open_part(part, partial(open_engine, whole=files[part.name])) for part in manifest.parts}
