"""Intermediates: values inside a part, made outputs of an ONNX graph or of a plan that is built from it.

A plan shows nothing but its outputs. One built from the same graph with more outputs shows the values inside it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from onnxscript import ir

from export.artifact.manifest import Manifest
from export.artifact.schema import encode
from export.engine.builder import BuildResult, build_plan
from export.engine.plugin_build import plugin_library
from export.graph.inline import inline_functions
from export.graph.onnx_graph import OnnxGraph
from export.graph.precision import precision_pass
from export.graph.source_ids import kept_ids
from export.graph.token_sizes import set_token_sizes
from export.graph.trace import write_part
from export.runtime.artifact import Artifact
from export.runtime.execution import BODIES, Execution
from export.runtime.intermediates_runner import IntermediatesRunner, KeptIdsRunner
from export.runtime.plan_runner import PlanRunner
from madtp.checkpoint.loading import Model
from madtp.files.staging import write_errors
from madtp.models.parts import Part
from madtp.tasks.requests import Runner

PassesOf = Callable[[Part], Sequence[Callable[[ir.Model], None]]]


class OpenIntermediates(Protocol):
    """Opens a part so that values inside it are outputs too."""

    def __call__(self, part: str, values: set[str]) -> Runner:
        """The part, given the ONNX names of the values; those that a plan does not have are excluded."""
        ...


def open_onnx_intermediates(files: Mapping[str, Path], execution: Execution = BODIES) -> OpenIntermediates:
    """Opens ONNX files, by part, in ONNX Runtime."""
    return lambda part, values: IntermediatesRunner(OnnxGraph.read(files[part]), values, execution=execution)


@dataclass(frozen=True)
class IntermediatesPlanBuilder:
    """Rebuilds the parts of a plan with values inside them as outputs. An `OpenIntermediates`.

    Attributes:
        files: every part, traced from the checkpoint, weights beside it.
        library: the plan's plugin library; None if it has none.
        on_phase: called with the builder's phases as they begin.
    """

    artifact: Artifact
    files: Mapping[str, Path]
    library: Path | None
    on_phase: Callable[[str], None]

    @classmethod
    def of_artifact(
        cls, artifact: Artifact, files: Mapping[str, Path], on_phase: Callable[[str], None]
    ) -> "IntermediatesPlanBuilder":
        """For a plan, with the plugin library that it needs."""
        entry = artifact.manifest.plugins.library
        library = None
        if entry is not None and entry.file is not None and not entry.embedded:
            library = artifact.folder / entry.file
        elif entry is not None:  # a builder cannot read the one inside the plan
            built = plugin_library("auto", on_phase)
            library = None if built is None else built.path
        return cls(artifact, files, library, on_phase)

    def __call__(self, part: str, values: set[str]) -> Runner:
        """Build and open.

        Raises:
            BackendError: it cannot be built.
            OutputError: the disk has no room for it.
        """
        self.build(part, values)
        return PlanRunner(self.files[part].with_suffix(".plan"), self.artifact.backend, self.library)

    def build(self, part: str, values: set[str]) -> BuildResult:
        """Build the plan, beside the part's ONNX file."""
        entry = next(entry for entry in self.artifact.manifest.parts if entry.name == part)
        source = self.files[part]
        network, plan = source.with_name(f"network-{source.name}"), source.with_suffix(".plan")
        library = self.library if entry.plugin_layers else None
        profile = encode(entry.profile)
        with write_errors(plan):
            if library is not None and entry.is_sized:
                network = source
            elif library is None or entry.tokens is None:
                inline_functions(source, network)
            else:
                set_token_sizes(source, network, entry.tokens.opt_max)
            cache = plan.with_suffix(".timing")
            return build_plan(
                self.artifact.backend, network, plan, cache, profile, self.on_phase, library, shown=values
            )


def traced_model(manifest: Manifest, model: Model) -> Model:
    """The model whose parts were traced for an artifact: that of the checkpoint, or its copy in the packed layout."""
    return model.packed_copy(sized=manifest.is_sized) if manifest.is_packed else model


def trace_parts(
    parts: Mapping[str, Part],
    folder: Path,
    on_part: Callable[[str], None],
    precision: str = "fp32",
    io_dtype: str = "fp32",
    runnable: bool = True,
    passes_of: PassesOf = lambda _: (),
) -> dict[str, Path]:
    """Trace every part of a float32 model anew, as an ONNX file in `folder`; `on_part` is called with its name.

    `passes_of` quantizes (`export.validate.quantization`). For the rest see `export.graph.precision.precision_pass`.
    """
    files = {}
    for name, part in parts.items():
        on_part(name)
        files[name] = folder / f"{name}.onnx"
        with write_errors(files[name]):
            change = precision_pass(precision, io_dtype, runnable)
            write_part(part, files[name], external_data=True, passes=[*passes_of(part), change])
    return files


def kept_ids_runners(files: Mapping[str, Path], open_part: OpenIntermediates) -> dict[str, KeptIdsRunner]:
    """Runners of the parts that prune, which keep the ids of their tokens; `files` is the ONNX of every part."""
    names = {part: kept_ids(OnnxGraph.read(path)) for part, path in files.items()}
    return {part: KeptIdsRunner(open_part(part, set(ids)), ids) for part, ids in names.items() if ids}
