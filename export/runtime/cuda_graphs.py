"""CUDA graphs of a plan, where TensorRT does not capture any by itself: captured once for its shapes, then replayed.

A context may not change as long as a graph that was captured from it is replayed: it has one, of its latest call.

https://docs.nvidia.com/deeplearning/tensorrt/latest/performance/best-practices.html#cuda-graphs
"""

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class _Captured:
    """A graph that can be launched, and the shapes of the outputs that it writes."""

    executable: Any
    shapes: dict[str, tuple[int, ...]]


class GraphContext:
    """An execution context that replays a CUDA graph; all else is the context's own.

    A graph is of shapes and of addresses. The first call with some runs as usual, because TensorRT may load kernels
    then and outputs get their memory; the second in a row is captured; those after it are replays, until a call has
    others. What cannot be captured, since a size depends on data, runs as usual for ever.

    Args:
        context: whose `execute_async_v3` enqueues.
        engine: that it is of.
        allocator: Polygraphy's, which knows the memory and the shapes of outputs by name.
        cuda: the CUDA runtime's bindings; None imports them.

    Attributes:
        captures: whether no call failed to be captured.
        replays: calls that were.
    """

    def __init__(self, context: Any, engine: Any, allocator: Any, cuda: Any = None) -> None:
        self._context, self._allocator = context, allocator
        self._cuda = cuda or importlib.import_module("cuda.bindings.runtime")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._inputs = [name for name in names if not _is_output(engine, name)]
        self._outputs = [name for name in names if _is_output(engine, name)]
        self._captured: _Captured | None = None
        self._last: Any = None  # the key of the latest call
        self.captures = True
        self.replays = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def execute_async_v3(self, stream: int) -> bool:
        """Enqueue on a stream: by replaying, if such a call was captured."""
        if self._key() != self._last:
            self.close()
        elif self._captured is None and self.captures:
            self._captured = self._capture(stream)
        if self._captured is None:
            enqueued = bool(self._context.execute_async_v3(stream))
            self._last = self._key() if enqueued else None
            return enqueued
        self._allocator.shapes.update(self._captured.shapes)  # which the context tells only where it runs itself
        self.replays += 1
        return self._succeeds("cudaGraphLaunch", self._captured.executable, stream)

    def close(self) -> None:
        """Give the graph back."""
        if self._captured is not None:
            self._succeeds("cudaGraphExecDestroy", self._captured.executable)
            self._captured = None

    def _key(self) -> Any:
        given = [
            (tuple(self._context.get_tensor_shape(name)), self._context.get_tensor_address(name))
            for name in self._inputs
        ]
        memory = [getattr(self._allocator.buffers.get(name), "ptr", 0) for name in self._outputs]
        return (*given, *memory)

    def _capture(self, stream: int) -> _Captured | None:
        """A graph of a call; None, from now on for every call, where it cannot be captured."""
        cuda = self._cuda
        relaxed = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        if not self._succeeds("cudaStreamBeginCapture", stream, relaxed):
            self.captures = False
            return None
        enqueued = bool(self._context.execute_async_v3(stream))
        status, graph = cuda.cudaStreamEndCapture(stream)
        if not enqueued or status != cuda.cudaError_t.cudaSuccess:
            cuda.cudaGetLastError()  # a failed capture is no failed call
            self.captures = False
            return None
        status, executable = cuda.cudaGraphInstantiate(graph, 0)
        self._succeeds("cudaGraphDestroy", graph)
        if status != cuda.cudaError_t.cudaSuccess:
            self.captures = False
            return None
        shapes = {name: self._allocator.shapes[name] for name in self._outputs if name in self._allocator.shapes}
        return _Captured(executable, shapes)

    def _succeeds(self, name: str, *arguments: Any) -> bool:
        status, *_ = getattr(self._cuda, name)(*arguments)
        return bool(status == self._cuda.cudaError_t.cudaSuccess)


def _is_output(engine: Any, name: str) -> bool:
    """By the name of the mode: its enumeration is TensorRT's, of whichever package."""
    return str(engine.get_tensor_mode(name)).endswith("OUTPUT")
