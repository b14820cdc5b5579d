"""A graph in ONNX Runtime on a stage's device, its ops on our kernels: inputs and outputs stay there (IO binding)."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# float32 is float32, as in torch here; of the convolution (there is one) the first algorithm that fits.
CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
NUMPY = {
    "tensor(float)": (torch.float32, np.float32),
    "tensor(float16)": (torch.float16, np.float16),
    "tensor(int64)": (torch.int64, np.int64),
    "tensor(int32)": (torch.int32, np.int32),
}


class OnnxSession:
    """A session with the op library; what it runs, it runs on one device.

    Args:
        source: the file, or its content.
        library: of ops, for that device.
        device: "cuda" or "cpu".
        weights: folder of the weights of a `source` that is content.
        profile: a prefix for a file in which the session records what it ran; see `op_providers`.
        capture: whether runs become replays of a CUDA graph, on a GPU; all sizes of the graph have to be numbers, and
            calls to be `fixed`.

    Raises:
        RuntimeError: the CUDA provider does not load here.
    """

    def __init__(
        self,
        source: Path | bytes,
        library: Path,
        device: str,
        weights: Path | None = None,
        profile: Path | None = None,
        *,
        capture: bool = False,
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.register_custom_ops_library(str(library))
        if weights is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        chosen = {**CUDA_OPTIONS, "enable_cuda_graph": "1"} if capture else CUDA_OPTIONS
        providers: list[Any] = [(CUDA, chosen), CPU] if device == "cuda" else [CPU]
        self.session = onnxruntime.InferenceSession(
            source if isinstance(source, bytes) else str(source), options, providers=providers
        )
        if device == "cuda" and CUDA not in self.session.get_providers():
            raise RuntimeError("ONNX Runtime's CUDA provider does not load here; the stage's log says why")
        self._device = device
        self._inputs = {value.name: NUMPY[value.type] for value in self.session.get_inputs()}
        self._outputs = [value.name for value in self.session.get_outputs()]

    def bound(self, inputs: Mapping[str, Tensor], temperature: float) -> Callable[[], Any]:
        """A call of these inputs, which are moved to the device now. It returns when the device is done."""
        given = {**inputs, "temperature": torch.tensor(temperature)}
        tensors = {name: given[name].to(self._device, kind[0]).contiguous() for name, kind in self._inputs.items()}
        binding = self.session.io_binding()
        for name, tensor in tensors.items():
            shape = tuple(tensor.shape)
            binding.bind_input(name, self._device, 0, self._inputs[name][1], shape, tensor.data_ptr())
        if self._device == "cuda":
            torch.cuda.synchronize()  # ONNX Runtime has a stream of its own

        def call(_held: object = tensors) -> Any:
            for name in self._outputs:  # anew: sizes vary, and memory of an earlier call may be in use
                binding.bind_output(name, self._device)
            self.session.run_with_iobinding(binding)
            return binding

        return call

    def fixed(self, inputs: Mapping[str, Tensor], temperature: float) -> "FixedCall":
        """A call of a graph whose sizes are numbers; inputs and outputs lie in memory of torch's, for good."""
        given = {**inputs, "temperature": torch.tensor(temperature)}
        tensors = {
            name: given[name].to(self._device, kind[0], copy=True).contiguous() for name, kind in self._inputs.items()
        }
        results, binding = {}, self.session.io_binding()
        for name, tensor in tensors.items():
            shape = tuple(tensor.shape)
            binding.bind_input(name, self._device, 0, self._inputs[name][1], shape, tensor.data_ptr())
        for value in self.session.get_outputs():
            dtype, narrow = NUMPY[value.type]
            results[value.name] = torch.empty(value.shape, dtype=dtype, device=self._device)
            binding.bind_output(value.name, self._device, 0, narrow, value.shape, results[value.name].data_ptr())
        return FixedCall(self.session, binding, tensors, results)

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> dict[str, Tensor]:
        """Outputs by name, on the CPU. A `madtp.tasks.requests.Runner`."""
        values = self.bound(inputs, temperature)().copy_outputs_to_cpu()
        return {name: torch.from_numpy(np.asarray(value)) for name, value in zip(self._outputs, values, strict=True)}

    def op_providers(self, ops: tuple[str, ...]) -> dict[str, int]:
        """End the profile: how often each of these ops ran, by op and provider, e.g. "TokenCompact on CUDA..."."""
        path = Path(self.session.end_profiling())
        events = [event.get("args", {}) for event in json.loads(path.read_text(encoding="utf-8"))]
        path.unlink()
        ran = Counter((args["op_name"], args["provider"]) for args in events if "provider" in args)
        return {f"{op} on {provider}": count for (op, provider), count in sorted(ran.items()) if op in ops}


@dataclass(frozen=True)
class FixedCall:
    """A call of a session with inputs and outputs bound to memory that stays. It returns when the device is done."""

    session: Any
    binding: Any
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    def load(self, inputs: Mapping[str, Tensor]) -> None:
        """Copy a batch to where the call reads it."""
        for name, tensor in inputs.items():
            self.inputs[name].copy_(tensor)
        self._meet()

    def read(self) -> dict[str, Tensor]:
        """Copies of what the last call gave."""
        self._meet()
        return {name: tensor.clone() for name, tensor in self.outputs.items()}

    def _meet(self) -> None:
        if self.inputs["temperature"].is_cuda:
            torch.cuda.synchronize()  # ONNX Runtime has a stream of its own

    def __call__(self) -> None:
        self.session.run_with_iobinding(self.binding)
