"""What measures on a GPU, driven without one: fakes of CUDA and TensorRT note what is asked of them, in order."""

import _ctypes
import math
import os
import shutil
import sys
import types
import weakref
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polygraphy.backend.trt
import polygraphy.cuda.cuda
import pynvml
import pytest
import torch
from cuda.pathfinder import DynamicLibNotFoundError

import export.runtime.plan_runner
from export.artifact.manifest import TensorInfo
from export.bench.environment import activity, clocks
from export.bench.instruments import instruments_for
from export.engine.backends import Backend, find_gpus
from export.errors import BackendError
from export.runtime.checked import CheckedRunner
from export.runtime.gpu import DeviceMeter, KernelCache, MeteredContext, execution_context, layer_profiler
from export.runtime.plan_runner import PlanRunner, load_cuda_runtime
from export.runtime.runner import RunnerOptions

STREAM = 7


class FakeCuda:
    """A CUDA runtime whose clock moves when it is told to; events note its time."""

    cudaError_t = SimpleNamespace(cudaSuccess=0)  # noqa: N815

    def __init__(self) -> None:
        self.milliseconds, self.asked = 0.0, list[str]()
        self.events: dict[int, float] = {}

    def cudaEventCreate(self) -> tuple[int, int]:  # noqa: N802
        self.events[len(self.events) + 1] = math.nan
        return 0, len(self.events)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[int]:  # noqa: N802
        assert stream == STREAM
        self.asked.append("record")
        self.events[event] = self.milliseconds
        return (0,)

    def cudaEventElapsedTime(self, begin: int, end: int) -> tuple[int, float]:  # noqa: N802
        return 0, self.events[end] - self.events[begin]

    def cudaEventDestroy(self, event: int) -> tuple[int]:  # noqa: N802
        del self.events[event]
        return (0,)


class FakeContext:
    """An execution context; each enqueue keeps the GPU busy for 3 ms."""

    def __init__(self, cuda: FakeCuda | None = None) -> None:
        self.cuda, self.profiler = cuda, None
        self.config: FakeConfig | None = None  # that it was made of

    def execute_async_v3(self, stream: int) -> bool:
        if self.cuda is not None:
            self.cuda.asked.append("enqueue")
            self.cuda.milliseconds += 3
        if self.profiler is not None:
            self.profiler.report_layer_time("matmul", 2.0)
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return stream == STREAM


def test_gpu_time_is_that_between_the_events_around_each_enqueue() -> None:
    cuda = FakeCuda()
    meter = DeviceMeter(cuda)
    context = MeteredContext(FakeContext(cuda), meter)
    for runs in (1, 3, 2):
        for _ in range(runs):
            cuda.milliseconds += 10  # copies of the inputs do not count
            assert context.execute_async_v3(STREAM)
        assert meter.take() == 3 * runs
    assert meter.take() == 0
    assert cuda.asked == ["record", "enqueue", "record"] * 6
    assert len(cuda.events) == 2 * 3, "events are used again"
    assert context.cuda is cuda
    meter.close()
    assert not cuda.events


@pytest.mark.skipif(bool(find_gpus()), reason="this machine has a GPU")
def test_without_a_gpu_the_real_bindings_say_so() -> None:
    with pytest.raises(BackendError, match=r"cudaEventCreate"):
        DeviceMeter().begin(0)
    described = SimpleNamespace(manifest=SimpleNamespace(is_plan=True))
    (note,) = instruments_for(described).notes
    assert note.startswith("GPU time was not measured: ")
    assert instruments_for(described).meter is None


def test_tensorrt_reports_layers_to_the_profiler() -> None:
    import tensorrt_rtx

    milliseconds: defaultdict[str, float] = defaultdict(float)
    profiler = layer_profiler(tensorrt_rtx, milliseconds)
    assert isinstance(profiler, tensorrt_rtx.IProfiler)
    for value in (1.5, 2.0):
        profiler.report_layer_time("a", value)
    assert milliseconds == {"a": 3.5}


class FakeCache:
    """A runtime cache whose content is bytes."""

    def __init__(self) -> None:
        self.content: bytes | None = b""

    def deserialize(self, content: bytes) -> bool:
        self.content = content
        return True

    def serialize(self) -> bytes | None:
        return self.content


class FakeConfig:
    """A runtime configuration of TensorRT for RTX, with that one's defaults."""

    def __init__(self) -> None:
        self.dynamic_shapes_kernel_specialization_strategy, self.cuda_graph_strategy = "lazy", "disabled"
        self.cache: FakeCache | None = None

    def create_runtime_cache(self) -> FakeCache:
        return FakeCache()

    def set_runtime_cache(self, cache: FakeCache) -> bool:
        self.cache = cache
        return True


class FakeEngine:
    """An engine that keeps what contexts are made of."""

    def __init__(self, context: Any) -> None:
        self.context, self.config = context, FakeConfig()

    def create_runtime_config(self) -> FakeConfig:
        return self.config

    def create_execution_context(self, config: FakeConfig) -> Any:
        assert config is self.config
        assert config.cache is not None, "the cache was not set"
        return self.context


@pytest.fixture(autouse=True)
def no_kernels_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelCache, "_compiled", b"")


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_kernels_stay_what_they_are_while_a_plan_runs(cuda_graphs: bool) -> None:
    import tensorrt_rtx as trt

    engine = FakeEngine(object())
    context, cache = execution_context(engine, trt, cuda_graphs)
    assert context is engine.context
    assert cache is not None
    assert engine.config.dynamic_shapes_kernel_specialization_strategy == (
        trt.DynamicShapesKernelSpecializationStrategy.NONE
    )
    assert engine.config.cuda_graph_strategy == (
        trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE if cuda_graphs else "disabled"
    )
    named = {name for name in vars(engine.config) if name != "cache"} | {"create_runtime_cache", "set_runtime_cache"}
    assert named <= set(dir(trt.IRuntimeConfig)), "the fake has what TensorRT does not"
    assert {"serialize", "deserialize"} <= set(dir(trt.IRuntimeCache))
    assert hasattr(trt.IExecutionContext, "is_stream_capturable")


def test_the_next_plan_begins_with_the_kernels_of_the_one_before() -> None:
    import tensorrt_rtx as trt

    caches = []
    for _ in range(3):
        engine = FakeEngine(object())
        _, cache = execution_context(engine, trt, False)
        assert cache is not None
        caches.append((cache, engine.config.cache))
        if len(caches) == 1:
            engine.config.cache.content = b"kernels"
        if len(caches) == 2:
            engine.config.cache.content = None  # TensorRT could not write them
        cache.keep()
    assert caches[1][1] is not caches[0][1], "a cache does not outlive what it was made of"
    assert caches[2][1].content == b"kernels"


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_other_tensorrts_run_plans_as_they_are(cuda_graphs: bool) -> None:
    engine, trt = object(), types.ModuleType("tensorrt")
    assert execution_context(engine, trt, cuda_graphs) == (engine, None)


def test_no_room_for_a_plan_is_an_error() -> None:
    import tensorrt_rtx as trt

    with pytest.raises(BackendError, match="cannot make the plan ready"):
        execution_context(FakeEngine(None), trt, False)


def test_polygraphy_finds_cuda_s_runtime_in_its_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = shutil.copy(_ctypes.__file__, tmp_path / "libcudart.so.13")  # any library will do
    monkeypatch.setattr(polygraphy.cuda.cuda, "G_CUDA", None)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/elsewhere")
    monkeypatch.setattr(
        export.runtime.plan_runner, "load_nvidia_dynamic_lib", lambda name: SimpleNamespace(abs_path=str(library))
    )
    for _ in range(2):
        load_cuda_runtime()
        assert os.environ["LD_LIBRARY_PATH"] == f"/elsewhere:{tmp_path}"
    assert polygraphy.cuda.cuda.G_CUDA.handle._name == str(library)


def test_without_cuda_s_runtime_no_plan_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise DynamicLibNotFoundError

    def fail() -> None:
        raise OSError("libcudart.so: cannot open shared object file")

    monkeypatch.setattr(export.runtime.plan_runner, "load_nvidia_dynamic_lib", refuse)
    monkeypatch.setattr(polygraphy.cuda, "wrapper", fail)
    with pytest.raises(BackendError, match=r"cuda-toolkit\[cudart\]"):
        load_cuda_runtime()


def test_clocks_of_a_gpu_that_tells_little(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    answers: dict[str, Any] = {
        **dict.fromkeys(("nvmlInit", "nvmlShutdown"), lambda: None),
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: "handle",
        "nvmlDeviceGetClockInfo": lambda handle, kind: {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 2619}[kind],
        "nvmlDeviceGetTemperature": lambda handle, sensor: 45,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: pynvml.nvmlClocksThrottleReasonSwPowerCap,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    gpu = {"sm_megahertz": 1980, "memory_megahertz": 2619, "celsius": 45, "held_back_by": ["software power cap"]}
    assert activity().gpus == [gpu]
    words = "GPU SM 1980 MHz, memory 2619 MHz, 45 degrees Celsius, throttled by software power cap"
    assert clocks(activity()).endswith(words)
    for name in ("nvmlDeviceGetTemperature", "nvmlDeviceGetCurrentClocksThrottleReasons", "nvmlDeviceGetClockInfo"):
        monkeypatch.setattr(pynvml, name, refuse)
    assert activity().gpus == [dict.fromkeys(gpu)]
    assert clocks(activity()).endswith("GPU throttling unknown")


class FakeTrtRunner:
    """Polygraphy's runner as far as `PlanRunner` uses it: one input, twice of it as the output."""

    def __init__(self, engine: Any) -> None:
        assert isinstance(engine, FakeContext), (
            "an engine, of which Polygraphy makes a context with TensorRT's defaults"
        )
        self.context = engine
        self.stream = SimpleNamespace(ptr=STREAM)

    def activate(self) -> None: ...

    def deactivate(self) -> None:
        self.context = None

    def get_input_metadata(self) -> dict[str, Any]:
        return dict.fromkeys(("x", "temperature"), SimpleNamespace(dtype=np.dtype(np.float32)))

    def infer(self, feed: dict[str, Any]) -> dict[str, Any]:
        assert feed.keys() == {"x", "temperature"}
        assert self.context.execute_async_v3(self.stream.ptr)
        return {"y": 2 * feed["x"]}


@pytest.fixture
def open_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[RunnerOptions, FakeContext], PlanRunner]:
    """Opens a plan of one input in a TensorRT that is not there."""
    plan = tmp_path / "out.plan"
    plan.write_bytes(b"plan")

    def open_it(options: RunnerOptions, context: FakeContext, allow_host_code: bool = False) -> PlanRunner:
        engine = FakeEngine(context)
        context.config = engine.config
        deserialized = {b"plan": engine, b"refused": None}
        runtime = SimpleNamespace(deserialize_cuda_engine=deserialized.__getitem__, engine_host_code_allowed=None)
        module = types.ModuleType("tensorrt_rtx")
        module.__dict__.update(
            Runtime=lambda logger: runtime,
            IProfiler=type("IProfiler", (), {}),
            CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="captured"),
            DynamicShapesKernelSpecializationStrategy=SimpleNamespace(NONE="none"),
        )
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
        monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "1")
        monkeypatch.setattr(polygraphy.backend.trt, "get_trt_logger", lambda: None)
        monkeypatch.setattr(polygraphy.backend.trt, "TrtRunner", FakeTrtRunner)
        monkeypatch.setattr(export.runtime.plan_runner, "load_cuda_runtime", lambda: None)
        backend = Backend("tensorrt-rtx", "1.7", "", can_run=True)
        runner = PlanRunner(plan, backend, allow_host_code=allow_host_code, options=options)
        assert runtime.engine_host_code_allowed is allow_host_code
        return runner

    return open_it


def test_a_plan_s_runner_meters_profiles_and_captures(open_plan: Any) -> None:
    cuda = FakeCuda()
    meter, layers = DeviceMeter(cuda), defaultdict[str, float](float)
    runner = open_plan(RunnerOptions(cuda_graphs=True, meter=meter, layer_milliseconds=layers), FakeContext(cuda))
    outputs = runner.run({"x": torch.ones(2)}, 0.5)
    np.testing.assert_array_equal(outputs["y"].numpy(), [2.0, 2.0])
    assert meter.take() == 3
    assert layers == {"matmul": 2.0}
    checked = CheckedRunner(runner, [TensorInfo("x", "float32", ("batch",))], [], {"x": [[1], [1], [2]]})
    assert checked.capturable
    assert runner._runner.context.config.cuda_graph_strategy == "captured"
    runner._runner.context.config.cache.content = b"kernels"
    held = weakref.ref(runner._runner)
    for _ in range(2):
        checked.close()
    assert held() is None, "the engine is still in the GPU's memory"
    assert KernelCache._compiled == b"kernels"


@pytest.mark.parametrize("allowed", [True, False])
def test_code_inside_a_plan_runs_only_where_that_is_allowed(open_plan: Any, allowed: bool) -> None:
    open_plan(RunnerOptions(), FakeContext(), allowed)


def test_a_plan_that_tensorrt_refuses_is_an_error(open_plan: Any, tmp_path: Path) -> None:
    (tmp_path / "out.plan").write_bytes(b"refused")
    with pytest.raises(BackendError, match=r"cannot load '.*out\.plan'"):
        open_plan(RunnerOptions(), FakeContext())


def test_a_plan_s_runner_does_nothing_that_was_not_asked_for(open_plan: Any) -> None:
    context = FakeContext()
    runner = open_plan(RunnerOptions(), context)
    runner.run({"x": torch.ones(1)}, 0.5)
    assert context.profiler is None
    assert context.config.cuda_graph_strategy == "disabled"
    assert runner._runner.context is context
