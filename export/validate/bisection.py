"""Where a failure comes from: the first divergent node of the artifact that failed."""

from collections.abc import Mapping
from pathlib import Path

from export.artifact.manifest import Manifest, tool_versions
from export.console import Progress
from export.errors import BackendError
from export.graph.custom_nodes import custom_nodes
from export.graph.inline import inline_functions
from export.graph.onnx_graph import OnnxGraph
from export.validate.artifact_runners import ArtifactRunners
from export.validate.comparator import PairFailure
from export.validate.divergent_node import DivergentNode, first_divergent_node, record_calls
from export.validate.intermediates import IntermediatesPlanBuilder, trace_parts
from export.validate.model_runner import TorchModelRunner
from export.validate.plan_bisection import bisect_plan
from export.validate.repro import save_repro
from export.validate.result import Bisection, ValidationResult
from export.validate.tolerances import Tolerance
from madtp.errors import OutputError


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
    of_onnx = [failure for pair in result.pairs if pair.pair == "torch/onnx" for failure in pair.failures]
    if not failures:
        return None
    tolerance = result.bounds.tolerance
    if result.runs_plan is None:
        return _bisect_onnx(of_onnx[0], manifest, reference, opened.files, tolerance, repro, scratch, progress)
    if of_onnx:
        return Bisection("the ONNX traced from the checkpoint differs from torch: report this defect of the export")
    if opened.plan_builder is None:
        return None
    try:
        return _bisect_plan(failures[0], reference, opened.files, opened.plan_builder, tolerance, repro, progress)
    except BackendError as error:
        return Bisection(f"the plan could not be bisected: {error.what}")


def _bisect_onnx(
    failure: PairFailure,
    manifest: Manifest,
    reference: TorchModelRunner,
    files: Mapping[str, Path],
    tolerance: Tolerance,
    repro: Path | None,
    scratch: Path,
    progress: Progress,
) -> Bisection:
    """Compare every node of the artifact's ONNX with the checkpoint's, traced anew."""
    traced = trace_parts(reference.parts, scratch, progress.detail)
    for part, path in traced.items():
        if not custom_nodes(files[part]):  # --plugins none, or a tool: function bodies are compared with inlined ones
            inline_functions(path, path)
    references, artifacts = _graphs(traced), _graphs(files)
    calls = record_calls(reference.config, reference.runners, failure.inputs, failure.temperature)
    node = first_divergent_node(calls, references, artifacts, tolerance.node, progress.detail)
    if node is None:
        return Bisection("no single node differs from the checkpoint's given identical inputs")
    versions = {name: (manifest.tools.get(name), version) for name, version in tool_versions().items()}
    others = [f"{name} {made}, not {version}" for name, (made, version) in versions.items() if made != version]
    note = f" (the artifact was made with {', '.join(others)}: node names may differ)" if others else ""
    return Bisection(f"{node}{note}", node, _repro(node, repro, tolerance.node))


def _bisect_plan(
    failure: PairFailure,
    reference: TorchModelRunner,
    files: Mapping[str, Path],
    builder: IntermediatesPlanBuilder,
    tolerance: Tolerance,
    repro: Path | None,
    progress: Progress,
) -> Bisection:
    """Compare the nodes of the plan with ONNX Runtime."""
    calls = record_calls(reference.config, reference.runners, failure.inputs, failure.temperature)
    found = bisect_plan(calls, _graphs(files), builder, tolerance.segment, progress.detail)
    node = found.divergent_node
    return Bisection(str(found), node, "" if node is None else _repro(node, repro, tolerance.segment))


def _graphs(files: Mapping[str, Path]) -> dict[str, OnnxGraph]:
    return {part: OnnxGraph.read(path) for part, path in files.items()}


def _repro(node: DivergentNode, folder: Path | None, tolerance: float) -> str:
    if folder is None:
        return "--repro DIR saves the node and its inputs, and prints a command that shows the difference"
    try:
        return save_repro(node, folder, tolerance)
    except OutputError as error:  # no reason to lose the result
        return f"the node was not saved: {error.what}"
