"""What only a GPU can tell: for how long it was at work, and which layer of a plan took how much of that."""

import importlib
from collections import defaultdict
from typing import Any, ClassVar

from export.errors import BackendError


class DeviceMeter:
    """GPU time between two points of a stream, from pairs of CUDA events.

    Events are recorded while a call is timed, and read when it is over (`take`), so that reading them costs it nothing.
    https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__EVENT.html

    Args:
        cuda: the CUDA runtime's bindings; None imports them.
    """

    def __init__(self, cuda: Any = None) -> None:
        self._cuda = cuda or importlib.import_module("cuda.bindings.runtime")
        self._pairs: list[tuple[Any, Any]] = []
        self._used = 0

    def check(self) -> None:
        """Fail now where it would fail later.

        Raises:
            BackendError: CUDA's runtime cannot be used, saying why.
        """
        self._call("cudaEventDestroy", self._call("cudaEventCreate"))

    def begin(self, stream: int) -> None:
        """What `stream` is given from now on counts."""
        if self._used == len(self._pairs):
            self._pairs.append((self._call("cudaEventCreate"), self._call("cudaEventCreate")))
        self._call("cudaEventRecord", self._pairs[self._used][0], stream)

    def end(self, stream: int) -> None:
        """What it is given from now on does not."""
        self._call("cudaEventRecord", self._pairs[self._used][1], stream)
        self._used += 1

    def take(self) -> float:
        """Milliseconds since the last time; the GPU has to be done with them."""
        pairs, self._used = self._pairs[: self._used], 0
        return float(sum(self._call("cudaEventElapsedTime", begin, end) for begin, end in pairs))

    def close(self) -> None:
        """Give the events back."""
        while self._pairs:
            for event in self._pairs.pop():
                self._call("cudaEventDestroy", event)

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *results = getattr(self._cuda, name)(*arguments)
        if status != self._cuda.cudaError_t.cudaSuccess:
            _, text = self._cuda.cudaGetErrorString(status)
            raise BackendError(
                f"the GPU's time cannot be taken: {name} failed",
                text.decode(),
                "Look at the GPU and its driver with nvidia-smi.",
            )
        return results[0] if results else None


class MeteredContext:
    """An execution context that tells a meter when the GPU begins and ends its work; all else is the context's own."""

    def __init__(self, context: Any, meter: DeviceMeter) -> None:
        self._context, self._meter = context, meter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def execute_async_v3(self, stream: int) -> bool:
        """Enqueue, between two events."""
        self._meter.begin(stream)
        enqueued = bool(self._context.execute_async_v3(stream))
        self._meter.end(stream)
        return enqueued


def layer_profiler(trt: Any, milliseconds: defaultdict[str, float]) -> Any:
    """A TensorRT profiler that adds the time of every layer to `milliseconds`, by name."""

    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            milliseconds[layer_name] += ms

    return Profiler()


class KernelCache:
    """The kernels that TensorRT for RTX compiles when a plan is opened; the next plan in this process begins with them.

    Args:
        config: a runtime configuration, which is given the cache. The cache has to outlive the contexts made of it.
    """

    _compiled: ClassVar[bytes] = b""

    def __init__(self, config: Any) -> None:
        self._cache = config.create_runtime_cache()
        if self._compiled:
            self._cache.deserialize(self._compiled)  # takes nothing of another GPU, driver or version
        config.set_runtime_cache(self._cache)

    def keep(self) -> None:
        """Leave what there is to the next plan; only while a CUDA context is current."""
        content = self._cache.serialize()
        if content is not None:
            KernelCache._compiled = bytes(content)


def execution_context(engine: Any, trt: Any, cuda_graphs: bool) -> tuple[Any, KernelCache | None]:
    """What Polygraphy runs a plan with, and the cache of its kernels.

    TensorRT for RTX by itself compiles kernels for sizes that it has not seen, while it runs on with others, and swaps
    them in when they are ready: times shift, and bits may. Nearly every request here has sizes of its own, so the same
    kernels serve them all, from the first call to the last.
    https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/dynamic-shapes-advanced.html

    Args:
        cuda_graphs: capture runs as CUDA graphs and replay them, which TensorRT for RTX does by itself, anew for every
            shape, and runs as usual what it cannot capture; for others see `export.runtime.cuda_graphs`.
            https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-cuda-graphs.html

    Returns:
        An execution context and its cache; of other TensorRTs, which compile nothing, the engine and None.

    Raises:
        BackendError: there is no room for the context.
    """
    strategies = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if strategies is None:
        return engine, None
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = strategies.NONE
    if cuda_graphs:
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    cache = KernelCache(config)
    context = engine.create_execution_context(config)
    if context is None:
        raise BackendError(
            "TensorRT cannot make the plan ready to run",
            "Its log above says why; most likely the GPU's memory is short.",
            "Free the GPU, or export with a smaller --batch.",
        )
    return context, cache
