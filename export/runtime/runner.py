"""Running the parts of an artifact: an ONNX file or a plan behind the call that `madtp.tasks.requests.Runner`
describes."""

import importlib
import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib
from numpy.typing import NDArray
from torch import Tensor

from export.artifact.manifest import TensorInfo
from export.engine.backends import Backend
from export.engine.plugin_library import loadable_library
from export.errors import BackendError, PluginError
from export.runtime.forks import keep_in_child, leave_children_quickly
from export.runtime.gpu import DeviceMeter, MeteredContext, execution_context, layer_profiler
from madtp.errors import InputError
from madtp.files.inputs import read_bytes
from madtp.ops.spec import DOMAIN, OPS, VERSION
from madtp.tasks.requests import Outputs, Runner

MOST_PLAN_BYTES = 2**36
SEARCHED = "LD_LIBRARY_PATH"  # where Polygraphy looks first


@dataclass(frozen=True)
class RunnerOptions:
    """How an artifact is run.

    Attributes:
        threads: of ONNX Runtime; None is its own choice.
        cuda_graphs: let TensorRT replay plans as CUDA graphs, where it can.
        meter: told what plans keep the GPU busy with; None measures nothing.
        layer_milliseconds: grows by the time of every layer of a plan, by name; None does not profile.
    """

    threads: int | None = None
    cuda_graphs: bool = False
    meter: DeviceMeter | None = None
    layer_milliseconds: defaultdict[str, float] | None = None


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
        self.output_names = [output.name for output in self.session.get_outputs()]

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        given = feed(inputs, temperature, self.input_names)
        with running(f"ONNX Runtime cannot run '{self._path}'"):
            values = self.session.run(self.output_names, given)
        return {name: torch.from_numpy(value) for name, value in zip(self.output_names, values, strict=True)}

    def __del__(self) -> None:
        keep_in_child(self, self._process)


class PlanRunner:
    """A TensorRT plan on this machine's GPU, through Polygraphy. Threads may share it: they take turns.

    Args:
        path: the plan.
        backend: that it was built with.
        library: the plugin library beside it, None where it needs none or carries it.
        allow_host_code: the plan carries its plugin library, which is code that this process will run.
        options: CUDA graphs, and what is measured.

    Raises:
        BackendError: TensorRT refuses the plan, or there is no CUDA runtime.
        PluginError: TensorRT cannot load the library.
    """

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
        self._input_names = set(self._runner.get_input_metadata())
        if options.layer_milliseconds is not None:
            self._profiler = layer_profiler(trt, options.layer_milliseconds)  # TensorRT keeps no reference of its own
            self._runner.context.profiler = self._profiler
        if options.meter is not None:
            self._runner.context = MeteredContext(self._runner.context, options.meter)

    @property
    def capturable(self) -> bool:
        """Whether the latest run could be captured as a CUDA graph: not where a shape depends on the data."""
        return bool(self._runner.context.is_stream_capturable(self._runner.stream.ptr))

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        given = feed(inputs, temperature, self._input_names)
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
                self._runner.deactivate()
            self._runner = None  # it holds what it was made of
            self._kernels = None
            self._kept_alive.clear()

    def __del__(self) -> None:
        keep_in_child(self, self._process)


@contextmanager
def running(what: str) -> Iterator[None]:
    """Turn what a runtime raises inside the block, which has no common type, into a BackendError.

    Args:
        what: went wrong if anything does.
    """
    try:
        yield
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackendError(what, why, "The file is not as the export left it, or memory is short.") from error


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
    if all((spec.onnx_name, str(VERSION), DOMAIN) in known for spec in OPS):  # get_creator would log an error
        return
    if registry.load_library(str(loadable_library(library).path)) is None:
        raise PluginError(
            f"TensorRT cannot load the plugin library '{library}'",
            "It is missing, damaged, or made for another system.",
            "Use the library of the same export as the plan, or export again.",
        )


class CheckedRunner:
    """A runner of a part that refuses inputs outside the profile, and outputs that are not the part's.

    Args:
        runner: of the part.
        inputs, outputs: of the part, from its manifest.
        profile: see `check_inputs`.
    """

    def __init__(
        self,
        runner: Runner,
        inputs: Sequence[TensorInfo],
        outputs: Sequence[TensorInfo],
        profile: Mapping[str, Iterable[Sequence[int]]],
    ) -> None:
        self._runner, self._inputs, self._outputs, self._profile = runner, inputs, outputs, profile

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        check_inputs(inputs, self._inputs, self._profile)
        outputs = self._runner.run(inputs, temperature)
        check_outputs(outputs, self._outputs)
        return outputs

    @property
    def capturable(self) -> bool:
        """Whether the latest run could be captured as a CUDA graph; never outside of a plan."""
        return isinstance(self._runner, PlanRunner) and self._runner.capturable

    def close(self) -> None:
        """Free what a plan holds on the GPU; it cannot be run any more."""
        if isinstance(self._runner, PlanRunner):
            self._runner.close()


class FiniteRunner:
    """A runner that refuses outputs that are not finite: answers, speed and token counts made of them mean nothing.

    Args:
        runner: of a part.
        part: its name, and `where`: what it is run for, for the message.

    Attributes:
        runs: how often it ran.
    """

    def __init__(self, runner: Runner, part: str, where: str) -> None:
        self._runner, self._part, self._where = runner, part, where
        self.runs = 0

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        self.runs += 1
        outputs = self._runner.run(inputs, temperature)
        for name, value in outputs.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise InputError(
                    f"the artifact's output '{name}' of part {self._part} is not finite ({self._where})",
                    "Answers made of it would be wrong, and speed and token counts of such ones say nothing.",
                    "Hold it to its checkpoint with python -m export validate.",
                )
        return outputs

    def close(self) -> None:
        """See `CheckedRunner.close`."""
        if isinstance(self._runner, CheckedRunner):
            self._runner.close()


def finite_runners(runners: Mapping[str, Runner], where: str) -> dict[str, FiniteRunner]:
    """All parts of a model, each a `FiniteRunner`."""
    return {part: FiniteRunner(runner, part, where) for part, runner in runners.items()}


def feed(inputs: Mapping[str, Tensor], temperature: float, names: Set[str]) -> dict[str, NDArray[Any]]:
    """numpy inputs of a part; the temperature is among them where it is one of `names`."""
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    if "temperature" in names:
        arrays["temperature"] = np.array(temperature, dtype=np.float32)
    return arrays


def check_inputs(
    inputs: Mapping[str, Tensor], expected: Sequence[TensorInfo], profile: Mapping[str, Iterable[Sequence[int]]]
) -> None:
    """Refuse inputs that the artifact was not built for.

    Args:
        inputs: by name, without `temperature`.
        expected: the part's inputs, from its manifest.
        profile: minimum, optimum and maximum shape by input name, from its manifest.

    Raises:
        InputError: an input is missing or unknown, has another dtype or rank, or a size outside the profile.
    """
    wanted = {info.name: info for info in expected if info.name != "temperature"}
    if inputs.keys() != wanted.keys():
        raise InputError(
            f"the inputs are {', '.join(sorted(inputs))}", f"The artifact takes {', '.join(sorted(wanted))}."
        )
    for name, tensor in inputs.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype != wanted[name].dtype:
            raise InputError(f"input '{name}' is {dtype}", f"The artifact takes {wanted[name].dtype}.")
        smallest, _, largest = map(list, profile[name])
        shape = list(tensor.shape)
        fits = len(shape) == len(smallest)
        if not fits or any(not low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)):
            raise InputError(
                f"input '{name}' has shape {shape}",
                f"The artifact was built for {smallest} to {largest}.",
                "Send a batch of that size, or export again with another --batch or --text.",
            )


def check_outputs(outputs: Outputs, expected: Sequence[TensorInfo]) -> None:
    """Refuse what is not the part's: a file whose hash is right can still be of another model than its manifest.

    Args:
        outputs: by name.
        expected: the part's outputs, from its manifest; dimensions that are symbols may have any size.

    Raises:
        BackendError: an output is missing, or has another dtype, rank or fixed dimension.
    """
    fix = "Artifact and manifest do not belong together; export again."
    for info in expected:
        value = outputs.get(info.name)
        if value is None:
            raise BackendError(f"the artifact gives no output '{info.name}'", "Its manifest lists it.", fix)
        shape, dtype = list(value.shape), str(value.dtype).removeprefix("torch.")
        fits = len(shape) == len(info.shape) and all(
            not isinstance(wanted, int) or size == wanted for size, wanted in zip(shape, info.shape, strict=True)
        )
        if dtype != info.dtype or not fits:
            wanted = ", ".join(map(str, info.shape))
            why = f"Its manifest lists {info.dtype} [{wanted}]."
            raise BackendError(f"the artifact's output '{info.name}' is {dtype} {shape}", why, fix)
