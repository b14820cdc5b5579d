"""Plans in TensorRT, through Polygraphy."""

import importlib
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib
from polygraphy.datatype import DataType
from torch import Tensor

from export.engine.backends import Backend
from export.engine.plugin_library import loadable_library
from export.errors import BackendError, PluginError
from export.runtime.cuda_graphs import GraphContext
from export.runtime.forks import keep_in_child
from export.runtime.gpu import MeteredContext, execution_context, layer_profiler
from export.runtime.runner import RunnerOptions, feed, running
from madtp.files.inputs import read_bytes
from madtp.ops.spec import PLUGINS
from madtp.tasks.requests import Outputs

MOST_PLAN_BYTES = 2**36
SEARCHED = "LD_LIBRARY_PATH"  # where Polygraphy looks first


class PlanRunner:
    """A TensorRT plan on this machine's GPU, through Polygraphy. Threads may share it: they take turns.

    Args:
        library: the plugin library beside it; None if the plan needs none or embeds it.
        allow_host_code: whether the plan may bring code, its embedded plugin library, that this process will run.

    Raises:
        BackendError: TensorRT refuses the plan, or there is no CUDA runtime.
        PluginError: TensorRT cannot load the library.
    """

    _graphs: GraphContext | None = None  # only where we capture CUDA graphs

    def __init__(
        self,
        path: Path,
        backend: Backend,
        library: Path | None = None,
        allow_host_code: bool = False,
        options: RunnerOptions | None = None,
    ) -> None:
        self._process = os.getpid()
        options = options or RunnerOptions()
        if backend.name == "tensorrt-rtx":
            os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"  # read when Polygraphy is imported
        from polygraphy.backend.trt import TrtRunner, get_trt_logger

        load_cuda_runtime()
        trt = importlib.import_module(backend.module)
        if library is not None:
            register_plugins(trt, library)
        runtime = trt.Runtime(get_trt_logger())
        runtime.engine_host_code_allowed = allow_host_code  # Polygraphy's EngineFromBytes would always allow it
        engine = runtime.deserialize_cuda_engine(read_bytes(path, MOST_PLAN_BYTES))
        if engine is None:
            raise BackendError(
                f"{backend.name} {backend.version} cannot load '{path}'",
                "Its log above says why.",
                "It was made with another version or for another GPU; export again on this machine.",
            )
        self._path, self._lock = path, threading.Lock()  # an execution context runs one request at a time
        runnable, self._kernels = execution_context(engine, trt, options.cuda_graphs)
        self._kept_alive = [runtime, engine]  # what is made of them may not do that
        self._runner: Any = TrtRunner(runnable)
        self._runner.activate()
        taken = self._runner.get_input_metadata()
        self._input_names = set(taken)
        self._float16 = {name for name, value in taken.items() if _is_float16(value.dtype)}
        if options.layer_milliseconds is not None:
            self._profiler = layer_profiler(trt, options.layer_milliseconds)  # TensorRT keeps no reference of its own
            self._runner.context.profiler = self._profiler
        if options.cuda_graphs and self._kernels is None:  # this TensorRT captures none by itself
            self._graphs = GraphContext(self._runner.context, self._runner.engine, self._runner.output_allocator)
            self._runner.context = self._graphs
        if options.meter is not None:
            self._runner.context = MeteredContext(self._runner.context, options.meter)

    @property
    def capturable(self) -> bool:
        """Whether the latest run could be captured as a CUDA graph: not where a shape depends on the data."""
        if self._graphs is not None:
            return self._graphs.captures
        return bool(self._runner.context.is_stream_capturable(self._runner.stream.ptr))

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        given = feed(inputs, temperature, self._input_names, self._float16)
        with self._lock:
            if self._runner is None:
                raise BackendError(f"'{self._path}' is closed", "Another thread closed it.", "Open it again.")
            with running(f"TensorRT cannot run '{self._path}'"):
                values = self._runner.infer(given)
            return {name: torch.from_numpy(np.array(value)) for name, value in values.items()}

    def close(self) -> None:
        """Free the engine and its device memory, once a request that runs is answered."""
        with self._lock:
            if self._runner is not None:
                if self._kernels is not None:
                    self._kernels.keep()
                if self._graphs is not None:
                    self._graphs.close()
                self._runner.deactivate()
            self._runner = None  # holds references to what it was made of
            self._kernels, self._graphs = None, None
            self._kept_alive.clear()

    def __del__(self) -> None:
        keep_in_child(self, self._process)


def _is_float16(dtype: Any) -> bool:
    """Of a type as Polygraphy tells it, its own or NumPy's."""
    return bool(DataType.from_dtype(dtype) == DataType.FLOAT16)


def load_cuda_runtime() -> None:
    """Have Polygraphy load CUDA's runtime, which it does not find where CUDA 13's wheels put it.

    Raises:
        BackendError: it is nowhere.
    """
    import polygraphy.cuda

    with suppress(DynamicLibNotFoundError):
        folder = str(Path(load_nvidia_dynamic_lib("cudart").abs_path or "").parent)
        searched = os.environ.get(SEARCHED, "").split(os.pathsep)
        if folder not in searched:
            os.environ[SEARCHED] = os.pathsep.join([*filter(None, searched), folder])
    try:
        polygraphy.cuda.wrapper()
    except OSError as error:
        raise BackendError(
            "CUDA's runtime library cannot be loaded",
            str(error),
            f"pip install 'cuda-toolkit[cudart]==13.*', or name the folder of libcudart.so in {SEARCHED}.",
        ) from error


def register_plugins(trt: Any, library: Path) -> None:
    """Make the plugins of `library` known to TensorRT in this process, once.

    Raises:
        PluginError: it is not of this project and version, or TensorRT cannot load it.
    """
    registry = trt.get_plugin_registry()
    known = {(one.name, one.plugin_version, one.plugin_namespace) for one in registry.all_creators}
    if known.issuperset(PLUGINS):  # get_creator would log an error
        return
    if registry.load_library(str(loadable_library(library).path)) is None:
        raise PluginError(
            f"TensorRT cannot load the plugin library '{library}'",
            "It is missing, damaged, or made for another system.",
            "Use the library of the same export as the plan, or export again.",
        )
