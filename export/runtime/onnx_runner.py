"""ONNX files in ONNX Runtime."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.runtime.forks import keep_in_child, leave_children_quickly
from export.runtime.runner import feed, running
from madtp.tasks.requests import Outputs


class OnnxRunner:
    """An ONNX file in ONNX Runtime on the CPU, nothing registered. Running raises BackendError where it cannot.

    Threads may share it; a forked child may not run it.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self._path, self._process = path, os.getpid()  # first: whatever happens next, the runner is deleted some time
        import onnxruntime

        leave_children_quickly()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.input_names = {value.name for value in self.session.get_inputs()}
        self._float16 = float16_inputs(self.session)
        self.output_names = [output.name for output in self.session.get_outputs()]

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        given = feed(inputs, temperature, self.input_names, self._float16)
        with running(f"ONNX Runtime cannot run '{self._path}'"):
            values = self.session.run(self.output_names, given)
        return {name: torch.from_numpy(value) for name, value in zip(self.output_names, values, strict=True)}

    def __del__(self) -> None:
        keep_in_child(self, self._process)


def float16_inputs(session: Any) -> set[str]:
    """The inputs of a session that are of float16."""
    return {value.name for value in session.get_inputs() if value.type == "tensor(float16)"}
