"""ONNX files in OpenVINO on the CPU, as another runtime than the project's own."""

from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from torch import Tensor

from export.runtime.runner import feed
from madtp.tasks.requests import Outputs

FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}  # the default is bfloat16 where the CPU has it


class OpenVinoRunner:
    """A part's standard ONNX file in OpenVINO; a runner as `madtp.tasks.requests.Runner` describes it.

    Args:
        settings: of OpenVINO; float32 unless they say otherwise.
    """

    def __init__(self, path: Path, settings: Mapping[str, str] | None = None) -> None:
        import openvino

        self._compiled = openvino.Core().compile_model(path, "CPU", dict(FLOAT32 if settings is None else settings))
        self._inputs = {value.any_name for value in self._compiled.inputs}
        graph = onnx.load(str(path), load_external_data=False).graph
        self._outputs = [value.name for value in graph.output]  # OpenVINO knows some by several names

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        values = self._compiled(feed(inputs, temperature, self._inputs))
        ports = zip(self._outputs, self._compiled.outputs, strict=True)
        return {name: torch.from_numpy(values[port].copy()) for name, port in ports}
