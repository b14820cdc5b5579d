"""Where a failure comes from: the first divergent node of the artifact that failed."""

from collections.abc import Mapping
from pathlib import Path

from export.artifact.manifest import Manifest, tool_versions
from export.console import Progress
from export.errors import BackendError
from export.graph.custom_nodes import custom_nodes
from export.graph.inline import inline_functions
from export.graph.onnx_graph import OnnxGraph
from export.validate.artifact_runners import KERNELS_RUNNER, ArtifactRunners
from export.validate.divergent_node import DivergentNode, first_divergent_node, record_calls
from export.validate.intermediates import trace_parts
from export.validate.model_runner import TorchModelRunner
from export.validate.plan_bisection import bisect_plan
from export.validate.quantization import passes_of
from export.validate.repro import save_repro
from export.validate.result import Bisection, ValidationResult
from madtp.errors import OutputError
from madtp.models.parts import parts_of

KERNELS_DIFFER = (
    "the function bodies are within tolerance, so the file is right and the op library is not: run it with --library "
    "none, and report this"
)


def bisect_failures(
    result: ValidationResult,
    manifest: Manifest,
    reference: TorchModelRunner,
    opened: ArtifactRunners,
    repro: Path | None,
    scratch: Path,
    progress: Progress,
) -> Bisection | None:
    """Find the first divergent node, and save it in the folder `repro`; None where nothing can be bisected."""
    failures = [failure for pair in result.pairs for failure in pair.failures]
    if not failures:
        return None
    is_plan = result.runs_plan is not None
    if not is_plan and all(KERNELS_RUNNER in failure.text.split(",")[0] for failure in failures):
        return Bisection(KERNELS_DIFFER)
    if is_plan and any(pair.pair == "torch/onnx" and pair.failures for pair in result.pairs):
        return Bisection("the ONNX traced from the checkpoint differs from torch: report this defect of the export")
    if is_plan and opened.plan_builder is None:
        return None
    tolerance, failure, artifacts = result.bounds.tolerance, failures[0], _graphs(opened.files)
    calls = record_calls(reference.config, reference.runners, failure.inputs, failure.temperature)
    if opened.plan_builder is not None:
        try:
            found = bisect_plan(calls, artifacts, opened.plan_builder, tolerance.segment, progress.detail)
        except BackendError as error:
            return Bisection(f"the plan could not be bisected: {error.what}")
        node = found.divergent_node
        return Bisection(str(found), node, "" if node is None else _repro(node, repro, tolerance.segment))
    references = _graphs(_trace_alike(reference, manifest, opened.files, scratch, progress))
    node = first_divergent_node(calls, references, artifacts, tolerance.node, progress.detail)
    if node is None:
        return Bisection("no single node differs from the checkpoint's given identical inputs")
    versions = {name: (manifest.tools.get(name), version) for name, version in tool_versions().items()}
    others = [f"{name} {made}, not {version}" for name, (made, version) in versions.items() if made != version]
    note = f" (the artifact was made with {', '.join(others)}: node names may differ)" if others else ""
    return Bisection(f"{node}{note}", node, _repro(node, repro, tolerance.node))


def _trace_alike(
    reference: TorchModelRunner, manifest: Manifest, files: Mapping[str, Path], scratch: Path, progress: Progress
) -> dict[str, Path]:
    """The checkpoint traced anew, with function bodies inlined where the artifact's ONNX has them inlined."""
    passes = passes_of(manifest, reference.model)
    parts = parts_of(reference.model)
    traced = trace_parts(parts, scratch, progress.detail, *manifest.graph_form, passes_of=passes)
    for part, path in traced.items():
        if not custom_nodes(files[part]):
            inline_functions(path, path)
    return traced


def _graphs(files: Mapping[str, Path]) -> dict[str, OnnxGraph]:
    return {part: OnnxGraph.read(path) for part, path in files.items()}


def _repro(node: DivergentNode, folder: Path | None, tolerance: float) -> str:
    if folder is None:
        return "--repro DIR saves the node and its inputs, and prints a command that shows the difference"
    try:
        return save_repro(node, folder, tolerance)
    except OutputError as error:  # no reason to lose the result
        return f"the node was not saved: {error.what}"
