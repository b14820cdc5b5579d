"""Where the time of an artifact goes: by kind of operator, with the multiply-adds of its matrix products, or by layer.

Short runs of their own with the profilers of ONNX Runtime and TensorRT: profiling costs time, so nothing else is timed
meanwhile.
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.bench.artifact import Described
from export.bench.calls import Case, Inputs
from export.onnx_graph import OnnxGraph, open_graph
from export.runner import feed
from madtp.opspec import OPS
from madtp.tasks import Outputs, run_request

BETWEEN = "between operators"
# ONNX Runtime inlines functions and calls their nodes so; the name of the function is the one given below.
OF_FUNCTION = re.compile(rf"^_inlfunc_.*({'|'.join(spec.onnx_name for spec in OPS)})")
NUMBERS = re.compile(r"\d+")
KERNEL = "_kernel_time"
RUN = "model_run"
MULTIPLY = {"MatMul", "Gemm", "FusedGemm", "FusedMatMul", "Conv", "FusedConv"}


@dataclass(frozen=True)
class Operators:
    """Of one request.

    Attributes:
        profiler: whose numbers these are.
        milliseconds: by kind of operator, custom ops as wholes, and BETWEEN, what ONNX Runtime spends besides; of a
            plan by kind of layer.
        gflops: multiply-adds (1e9) of matrix products and convolutions, as they really ran; None of a plan.
    """

    profiler: str
    milliseconds: dict[str, float]
    gflops: float | None


class ProfiledRunner:
    """An ONNX file under ONNX Runtime's profiler.

    Args:
        path: the file.
        scratch: the profile goes there.
        threads: of ONNX Runtime; None is its own choice.
    """

    def __init__(self, path: Path, scratch: Path, threads: int | None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(scratch / path.stem)
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = open_graph(_with_named_functions(OnnxGraph.read(path)), options)
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._runs = self._first = 0

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        self._runs += 1
        values = self._session.run(self._outputs, feed(inputs, temperature, self._inputs))
        return {name: torch.from_numpy(value) for name, value in zip(self._outputs, values, strict=True)}

    def begin(self) -> None:
        """Leave out what has run so far."""
        self._first = self._runs

    def events(self) -> list[dict[str, Any]]:
        """What was recorded since `begin`; ends the profile."""
        events: list[dict[str, Any]] = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        starts = sorted(event["ts"] for event in events if event["name"] == RUN)[self._first :]
        return [event for event in events if starts and event["ts"] >= starts[0]]


def profile(described: Described, calls: Sequence[Inputs], case: Case, scratch: Path, threads: int | None) -> Operators:
    """Run calls of a case under ONNX Runtime's profiler, each once, after a warm-up.

    Args:
        described: an artifact of ONNX Runtime.
        calls: of the case.
        case: temperature and batch.
        scratch: a folder for the profiler's files.
        threads: of ONNX Runtime.
    """
    runners = {
        part["name"]: ProfiledRunner(described.folder / part["artifact"], scratch, threads)
        for part in described.manifest["parts"]
    }
    run_request(described.config, runners, calls[0], case.temperature)  # allocates memory, which later runs use again
    for runner in runners.values():
        runner.begin()
    for inputs in calls:
        run_request(described.config, runners, inputs, case.temperature)
    requests = len(calls) * case.batch
    return summarize_events([event for runner in runners.values() for event in runner.events()], requests)


def summarize_events(events: Iterable[Mapping[str, Any]], requests: int) -> Operators:
    """Add up a profile.

    Args:
        events: as ONNX Runtime writes them, microseconds.
        requests: how many were run.
    """
    milliseconds: Counter[str] = Counter()
    multiply_adds = 0.0
    for event in events:
        name, duration = event["name"], event["dur"] / 1e3 / requests
        if event["cat"] == "Node" and name.endswith(KERNEL):
            operator = event["args"]["op_name"]
            function = OF_FUNCTION.match(name)
            milliseconds[function[1] if function else operator] += duration
            milliseconds[BETWEEN] -= duration
            multiply_adds += _multiply_adds(operator, event["args"])
        elif name == RUN:
            milliseconds[BETWEEN] += duration
    return Operators("ONNX Runtime's profiler", dict(milliseconds.most_common()), multiply_adds / 1e9 / requests)


def summarize_layers(milliseconds: Mapping[str, float], requests: int) -> Operators:
    """Add up the times of a plan's layers; layers whose names differ in numbers alone are of a kind.

    Args:
        milliseconds: by layer.
        requests: how many were run.
    """
    kinds: defaultdict[str, float] = defaultdict(float)
    for name, value in milliseconds.items():
        kinds[NUMBERS.sub("#", name)] += value / requests
    return Operators("TensorRT's layer profiler", dict(kinds), None)


def _multiply_adds(operator: str, arguments: Mapping[str, Any]) -> float:
    """Of one node, from its shapes. (Weights that the runtime repacks are not among its inputs.)"""
    if operator not in MULTIPLY:
        return 0.0
    first, output = (_shape(arguments[key][0]) for key in ("input_type_shape", "output_type_shape"))
    if operator == "MatMul":
        return math.prod(output) * first[-1]
    if operator in ("Conv", "FusedConv"):  # of these models: patches that do not overlap
        return math.prod(first) * output[1]
    return math.prod(first) * output[-1]  # the first factor may be transposed


def _shape(entry: Mapping[str, list[int]]) -> list[int]:
    return next(iter(entry.values()))


def _with_named_functions(graph: OnnxGraph) -> OnnxGraph:
    """The graph with every node of a function named after it."""
    for function in graph.model.functions:
        for number, node in enumerate(function.node):
            node.name = f"{function.name}/{number}"
    return graph
