"""What every runner of a part shares: its options, its feed, and what it raises.

A runner is what `madtp.tasks.requests.Runner` describes: a part of a model behind one call.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.errors import BackendError
from export.runtime.execution import Execution
from export.runtime.gpu import DeviceMeter


@dataclass(frozen=True)
class RunnerOptions:
    """How to run an artifact.

    Attributes:
        threads: threads of ONNX Runtime; None leaves the number to it.
        cuda_graphs: let TensorRT replay plans as CUDA graphs, if it can.
        meter: measures the GPU time of plans; None measures nothing.
        layer_milliseconds: collects the time of every layer of a plan, by name; None does not profile.
        execution: of ONNX files; None is the artifact's default (`Artifact.execution`).
    """

    threads: int | None = None
    cuda_graphs: bool = False
    meter: DeviceMeter | None = None
    layer_milliseconds: defaultdict[str, float] | None = None
    execution: Execution | None = None


def feed(
    inputs: Mapping[str, Tensor], temperature: float, names: Set[str], float16: Collection[str] = ()
) -> dict[str, NDArray[Any]]:
    """The numpy inputs of a part, with the temperature if it is one of the part's input `names`.

    Floating-point inputs are given in float32, those named in `float16` in that.
    """

    def typed(name: str, tensor: Tensor) -> Tensor:
        wanted = torch.float16 if name in float16 else torch.float32
        return tensor.to(wanted) if tensor.is_floating_point() else tensor

    arrays = {name: typed(name, tensor).numpy() for name, tensor in inputs.items()}
    if "temperature" in names:
        arrays["temperature"] = np.array(temperature, dtype=np.float32)
    return arrays


@contextmanager
def running(failure: str) -> Iterator[None]:
    """Turn what a runtime raises inside the block, which has no common type, into a BackendError saying `failure`."""
    try:
        yield
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackendError(failure, why, "The file is not as the export left it, or memory is short.") from error
