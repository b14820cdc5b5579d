"""ONNX files in ONNX Runtime."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.errors import BackendError
from export.graph.onnx_graph import open_session
from export.runtime.execution import BODIES, CUDA, Execution
from export.runtime.forks import keep_in_child, leave_children_quickly
from export.runtime.runner import feed, running
from madtp.tasks.requests import Outputs


class OnnxRunner:
    """An ONNX file in ONNX Runtime; as `execution` is by itself on the CPU, nothing registered.

    Running raises BackendError where it cannot. Threads may share it; a forked child may not run it.

    Raises:
        BackendError: the GPU that was asked for cannot be used.
        PluginError: the op library cannot be registered.
    """

    def __init__(self, path: Path, threads: int | None = None, execution: Execution = BODIES) -> None:
        self._path, self._process = path, os.getpid()  # first: whatever happens next, the runner is deleted some time
        leave_children_quickly()
        self.session = open_session(str(path), execution.session_options(threads), execution.providers)
        if execution.provider == "cuda" and CUDA not in self.session.get_providers():
            raise BackendError(
                f"ONNX Runtime cannot run '{path}' on a GPU",
                "Its CUDA provider could not be loaded: CUDA's libraries or the driver do not fit it.",
                "See what it logged above, or use --provider cpu.",
            )
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
