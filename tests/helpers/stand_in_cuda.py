"""A stand-in for a GPU's runtime: calls for "cuda" run on the CPU, and `torch.cuda` answers as a GPU would.

With it the lines of the GPU kit that only a machine with a GPU reaches run in the tests. It shows that they run, not
their results on a GPU. (tests/helpers/pretend_gpu.py checks the device of tensors.)
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OnCpu(TorchFunctionMode):
    """Every call that names the device "cuda" gets the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {name: _here(value) for name, value in (kwargs or {}).items()}
        return func(*map(_here, args), **given)


def _here(value: Any) -> Any:
    named = isinstance(value, str) and value.partition(":")[0] == "cuda"
    return "cpu" if named or (isinstance(value, torch.device) and value.type == "cuda") else value


class Event:
    """A point in time."""

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        assert self.at

    def elapsed_time(self, end: "Event") -> float:
        return (end.at - self.at) * 1e3


class Stream:
    """A stream whose work is always done."""

    cuda_stream = 0

    def wait_stream(self, other: "Stream") -> None:
        assert isinstance(other, Stream)


class Graph:
    """Repeats the operators that were called while it was captured, into the memory of their results then."""

    def __init__(self) -> None:
        self.recording: Recording | None = None

    @torch.inference_mode()
    def replay(self) -> None:
        assert self.recording is not None
        for function, args, kwargs, held in self.recording.calls:
            for old, new in zip(tree_leaves(held), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Recording(TorchDispatchMode):
    """Every operator that is called, and its result."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


@contextmanager
def captured(graph: Graph) -> Iterator[None]:
    """As `torch.cuda.graph`."""
    graph.recording = Recording()
    with graph.recording:
        yield


def install(patch: pytest.MonkeyPatch) -> None:
    """Make `torch.cuda` answer as a GPU would; enter `OnCpu` too."""
    properties = SimpleNamespace(multi_processor_count=132, total_memory=80 << 30, L2_cache_size=50 << 20, uuid="none")
    answers = {
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": captured,
        "stream": lambda stream: nullcontext(),
        "init": lambda: None,
        "synchronize": lambda: None,
        "set_sync_debug_mode": lambda mode: None,
        "empty_cache": lambda: None,
        "current_stream": lambda device=None: Stream(),
        "get_device_name": lambda index=0: "NVIDIA H100 80GB HBM3",
        "get_device_capability": lambda index=0: (9, 0),
        "get_device_properties": lambda index=0: properties,
        "memory_allocated": lambda: 1000,
        "max_memory_allocated": lambda: 3000,
        "reset_peak_memory_stats": lambda: None,
    }
    for name, answer in answers.items():
        patch.setattr(torch.cuda, name, answer)
    patch.setattr(torch.version, "cuda", "13.0")
