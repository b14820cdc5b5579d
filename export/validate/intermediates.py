"""Seeing what happens inside a part: runners of ONNX graphs and plans whose inner values are outputs too.

A plan shows nothing but its outputs. One built from the same graph with more outputs shows the values inside it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from export.artifact.schema import encode
from export.engine.builder import BuildResult, build_plan
from export.engine.plugin_build import plugin_library
from export.graph.expose_outputs import expose_outputs
from export.graph.inline import inline_functions
from export.graph.onnx_graph import OnnxGraph, open_graph
from export.graph.source_ids import kept_ids
from export.graph.token_sizes import set_token_sizes
from export.graph.trace import save_onnx, trace_part
from export.runtime.artifact import Artifact
from export.runtime.runner import PlanRunner, feed, running
from madtp.files.staging import write_errors
from madtp.models.parts import Part
from madtp.tasks.requests import Outputs, Runner


class Shows(Protocol):
    """Opens a part of a plan so that values inside it are outputs too."""

    def __call__(self, part: str, shown: set[str]) -> Runner:
        """The part, and the ONNX names of the values; those that the plan does not have are left out."""
        ...


class ShowingRunner:
    """A part's ONNX graph in ONNX Runtime; values inside it are outputs too.

    Args:
        graph: to read.
        shown: the names of these values.
    """

    def __init__(self, graph: OnnxGraph, shown: Iterable[str]) -> None:
        self._session = open_graph(expose_outputs(graph, shown))
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._outputs = [value.name for value in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        given = feed(inputs, temperature, self._inputs)
        with running("ONNX Runtime cannot run a copy of the artifact that shows the values inside it"):
            arrays = self._session.run(self._outputs, given)
        return {name: torch.from_numpy(array) for name, array in zip(self._outputs, arrays, strict=True)}


def show_onnx(files: Mapping[str, Path]) -> Shows:
    """Opens ONNX files, by part, in ONNX Runtime."""
    return lambda part, shown: ShowingRunner(OnnxGraph.read(files[part]), shown)


@dataclass(frozen=True)
class PlanBuilder:
    """Builds the parts of a plan anew, as it was built, but for what they show. A `Shows`.

    Attributes:
        artifact: the plan; it can run.
        files: every part, traced from the checkpoint, weights beside it.
        library: of the plan's plugins; None: it has none.
        on_phase: told what the builder is doing.
    """

    artifact: Artifact
    files: Mapping[str, Path]
    library: Path | None
    on_phase: Callable[[str], None]

    @classmethod
    def of_artifact(
        cls, artifact: Artifact, files: Mapping[str, Path], on_phase: Callable[[str], None]
    ) -> "PlanBuilder":
        """For a plan, with the plugin library that it needs."""
        entry = artifact.manifest.plugins.library
        library = None
        if entry is not None and entry.file is not None and not entry.embedded:
            library = artifact.folder / entry.file
        elif entry is not None:  # a builder cannot read the one inside the plan
            built = plugin_library("auto", on_phase)
            library = None if built is None else built.path
        return cls(artifact, files, library, on_phase)

    def __call__(self, part: str, shown: set[str]) -> Runner:
        """Build and open.

        Raises:
            BackendError: it cannot be built.
            OutputError: there is no room for it.
        """
        self.build(part, shown)
        return PlanRunner(self.files[part].with_suffix(".plan"), self.artifact.backend, self.library)

    def build(self, part: str, shown: set[str]) -> BuildResult:
        """Build the plan, beside the part's ONNX file."""
        entry = next(entry for entry in self.artifact.manifest.parts if entry.name == part)
        source = self.files[part]
        network, plan = source.with_name(f"network-{source.name}"), source.with_suffix(".plan")
        library = self.library if entry.plugin_layers else None
        with write_errors(plan):
            if library is None or entry.tokens is None:
                inline_functions(source, network)
            else:
                set_token_sizes(source, network, entry.tokens.opt_max)
            cache = plan.with_suffix(".timing")
            return build_plan(
                self.artifact.backend, network, plan, cache, encode(entry.profile), self.on_phase, library, shown=shown
            )


def trace_parts(parts: Mapping[str, Part], folder: Path, on_part: Callable[[str], None]) -> dict[str, Path]:
    """Every part, traced anew, as an ONNX file in `folder`; `on_part` is told which one it is."""
    files = {}
    for name, part in parts.items():
        on_part(name)
        files[name] = folder / f"{name}.onnx"
        with write_errors(files[name]):
            save_onnx(trace_part(part), files[name], external_data=True)
    return files


class WatchedRunner:
    """A part whose source ids are put aside.

    Args:
        runner: shows them.
        names: of these values, in the order in which the layers run.

    Attributes:
        ids: of the latest call, [sequences, tokens] int32 for each layer.
    """

    def __init__(self, runner: Runner, names: Sequence[str]) -> None:
        self._runner, self._names = runner, names
        self.ids: list[Tensor] = []

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        outputs = dict(self._runner.run(inputs, temperature))
        self.ids = [outputs.pop(name) for name in self._names]
        return outputs


def watched_parts(files: Mapping[str, Path], shows: Shows) -> dict[str, WatchedRunner]:
    """The parts that prune, showing which tokens they keep.

    Args:
        files: ONNX of every part.
        shows: opens them.
    """
    names = {part: kept_ids(OnnxGraph.read(path)) for part, path in files.items()}
    return {part: WatchedRunner(shows(part, set(shown)), shown) for part, shown in names.items() if shown}
