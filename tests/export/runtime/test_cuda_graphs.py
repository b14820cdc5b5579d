"""CUDA graphs that we capture ourselves, driven by fakes of CUDA, of TensorRT's context and of Polygraphy's memory."""

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import tensorrt_rtx
from cuda.bindings import runtime
from polygraphy.backend.trt import TrtRunner

from export.runtime.cuda_graphs import GraphContext

STREAM = 7


class FakeCuda:
    """Captures what the context enqueues meanwhile, and launches it by calling it again."""

    cudaError_t = SimpleNamespace(cudaSuccess=0)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self) -> None:
        self.log: list[str] = []
        self.recorded: list[Any] | None = None
        self.alive = 0
        self.capture_status = self.instantiate_status = 0

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:  # noqa: N802
        assert (stream, mode) == (STREAM, 1)
        self.recorded = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, Any]:  # noqa: N802
        recorded, self.recorded = self.recorded, None
        return self.capture_status, recorded

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[int, Any]:  # noqa: N802
        self.alive += not self.instantiate_status
        return self.instantiate_status, graph

    def cudaGraphDestroy(self, graph: Any) -> tuple[int]:  # noqa: N802
        return (0,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[int]:  # noqa: N802
        self.alive -= 1
        return (0,)

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[int]:  # noqa: N802
        self.log.append(f"launch {graph}")
        return (0,)

    def cudaGetLastError(self) -> tuple[int]:  # noqa: N802
        self.log.append("error cleared")
        return (0,)


class FakeContext:
    """A context of input `x` and output `y`, whose memory grows with the shape, as Polygraphy's does."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.shape, self.address = cuda, (1, 4), 100
        self.allocator = SimpleNamespace(buffers={}, shapes={})
        self.succeeds = True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name == "x"
        return self.shape

    def get_tensor_address(self, name: str) -> int:
        return self.address

    def execute_async_v3(self, stream: int) -> bool:
        size = self.shape[0]
        held = self.allocator.buffers.get("y")
        if held is None or held.size < size:
            assert self.cuda.recorded is None, "memory is allocated while a graph is captured"
            self.allocator.buffers["y"] = SimpleNamespace(size=size, ptr=1000 * size)
        self.allocator.shapes["y"] = self.shape
        if self.cuda.recorded is not None:
            self.cuda.recorded.append(self.shape)
        else:
            self.cuda.log.append(f"run {self.shape}")
        return self.succeeds


class FakeEngine:
    num_io_tensors = 2

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = tensorrt_rtx.TensorIOMode
        return modes.INPUT if name == "x" else modes.OUTPUT


@pytest.fixture
def made() -> tuple[FakeCuda, FakeContext, GraphContext]:
    cuda = FakeCuda()
    context = FakeContext(cuda)
    return cuda, context, GraphContext(context, FakeEngine(), context.allocator, cuda)


def test_the_second_call_is_captured_and_later_ones_are_replayed(made: Any) -> None:
    cuda, _, graphs = made
    assert all(graphs.execute_async_v3(STREAM) for _ in range(4))
    assert cuda.log == ["run (1, 4)"] + ["launch [(1, 4)]"] * 3
    assert graphs.replays == 3
    assert graphs.captures


def test_no_graph_outlives_a_change_of_its_context(made: Any) -> None:
    """TensorRT does not say what a graph does whose context has other shapes since, even if they are set back."""
    cuda, context, graphs = made
    first, second = (2, 4), (1, 4)  # the larger first, so that memory stays where it is
    for shape in (first, first, first, second, first, second, second, second):
        context.shape = shape
        graphs.execute_async_v3(STREAM)
        assert context.allocator.shapes["y"] == shape
    assert cuda.log == [
        *(f"run {first}", f"launch [{first}]", f"launch [{first}]"),
        *(f"run {second}", f"run {first}"),
        *(f"run {second}", f"launch [{second}]", f"launch [{second}]"),
    ]
    assert cuda.alive == 1


def test_a_graph_of_memory_that_moved_is_not_replayed(made: Any) -> None:
    cuda, context, graphs = made
    for _ in range(3):
        graphs.execute_async_v3(STREAM)
    context.shape = (3, 4)
    graphs.execute_async_v3(STREAM)  # needs more memory, which is elsewhere
    context.shape = (1, 4)
    graphs.execute_async_v3(STREAM)
    assert cuda.log[-1] == "run (1, 4)"
    context.address = 200
    graphs.execute_async_v3(STREAM)
    assert cuda.log[-1] == "run (1, 4)"


@pytest.mark.parametrize("failing", ["capture", "instantiate", "enqueue"])
def test_what_cannot_be_captured_runs_as_usual_for_ever(made: Any, failing: str) -> None:
    cuda, context, graphs = made
    assert graphs.execute_async_v3(STREAM)
    if failing == "enqueue":
        context.succeeds = False
    else:
        setattr(cuda, f"{failing}_status", 901)
    graphs.execute_async_v3(STREAM)
    context.succeeds = True
    assert graphs.execute_async_v3(STREAM)
    assert not graphs.captures
    assert graphs.replays == 0
    assert [entry for entry in cuda.log if entry.startswith("run")] == ["run (1, 4)"] * 3


def test_graphs_are_given_back(made: Any) -> None:
    cuda, context, graphs = made
    for size in range(5, 0, -1):
        context.shape = (size, 4)
        for _ in range(2):
            graphs.execute_async_v3(STREAM)
        assert cuda.alive == 1
    graphs.close()
    assert cuda.alive == 0


def test_the_fakes_have_nothing_that_the_real_ones_lack() -> None:
    assert {name for name in dir(FakeCuda) if name.startswith("cuda")} <= set(dir(runtime))
    assert hasattr(runtime.cudaStreamCaptureMode, "cudaStreamCaptureModeThreadLocal")
    assert {"get_tensor_shape", "get_tensor_address", "execute_async_v3"} <= set(dir(tensorrt_rtx.IExecutionContext))
    assert {"num_io_tensors", "get_tensor_name", "get_tensor_mode"} <= set(dir(tensorrt_rtx.ICudaEngine))
    source = inspect.getsource(TrtRunner)
    assert "self.output_allocator.shapes[name]" in source
    assert "self.context.execute_async_v3(self.stream.ptr)" in source
