"""ONNX files in OpenVINO on the CPU, as another runtime than the project's own."""

from collections.abc import Mapping
from pathlib import Path

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

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        values = self._compiled(feed(inputs, temperature, self._inputs))
        return {key.any_name: torch.from_numpy(value.copy()) for key, value in values.items()}
