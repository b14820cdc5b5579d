"""ONNX artifacts that pass for plans on a machine that seems to have a GPU."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
from torch import Tensor

import export.engine.backends
import export.runtime.artifact
import export.validate.intermediates
import export.validate.plan
from export.engine.backends import Gpu
from export.engine.builder import BuildResult
from export.graph.expose_outputs import expose_outputs
from export.graph.onnx_graph import OnnxGraph
from export.runtime.runner import OnnxRunner
from madtp.tasks.requests import Outputs
from tests.helpers.defects import edit

ADA = Gpu("a GPU of the tests", (8, 9), "580.0")


class StandIn(OnnxRunner):
    """A "plan" that is an ONNX file, in place of a runner of TensorRT."""

    def __init__(self, path: Path, *others: Any) -> None:
        copy = path.with_suffix(".stand-in.onnx")
        shutil.copyfile(path, copy)
        super().__init__(copy)

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        return {name: value.clone() for name, value in super().run(inputs, temperature).items()}

    def close(self) -> None: ...


def pass_for_plan(artifact: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make an ONNX artifact pass for a plan on a machine that seems to have a GPU; rebuilt plans have its defects."""

    def as_plan(manifest: dict[str, Any]) -> None:
        for part in manifest["parts"]:
            made = (artifact.parent / part["artifact"]).rename(
                artifact.with_name(part["artifact"]).with_suffix(".plan")
            )
            part["artifact"] = made.name
        manifest["artifact"] = artifact.with_suffix(".plan").name
        manifest["backend"]["name"] = "tensorrt-rtx"

    def build(backend: Any, source: Path, target: Path, *others: Any, shown: set[str]) -> BuildResult:
        part = artifact.with_name(f"{artifact.stem}.{target.stem}.plan")
        model = onnx.load(str(part if part.is_file() else artifact.with_suffix(".plan")))
        made = {name for node in model.graph.node for name in node.output}
        onnx.save(expose_outputs(OnnxGraph(model, artifact.parent), shown & made).model, str(target))
        return BuildResult(0, {}, False, sorted(shown & made))

    edit(artifact, as_plan)
    patch.setattr(export.engine.backends, "find_gpus", lambda: [ADA])
    patch.setattr(export.runtime.artifact, "PlanRunner", StandIn)
    patch.setattr(export.validate.intermediates, "PlanRunner", StandIn)
    patch.setattr(export.validate.plan, "PlanRunner", StandIn)
    patch.setattr(export.validate.intermediates, "build_plan", build)
    return artifact.with_suffix(".plan")
