"""Where the time of an artifact goes: by kind of operator, with the multiply-adds of its matrix products, or by layer.

Short runs of their own with the profilers of ONNX Runtime and TensorRT: profiling costs time, so nothing else is timed
meanwhile. The cases take turns, and medians over their calls count, so that neighbours do not look like a loss.
"""

import json
import math
import re
import statistics
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.bench.calls import Case, Inputs
from export.graph.onnx_graph import OnnxGraph, open_graph
from export.runtime.artifact import Artifact
from export.runtime.runner import feed
from madtp.ops.spec import OPS
from madtp.tasks.requests import Outputs, run_request

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
        calls: `milliseconds` of each call that these are the medians of; empty of one call.
    """

    profiler: str
    milliseconds: dict[str, float]
    gflops: float | None
    calls: list[dict[str, float]] = field(default_factory=list)


class ProfiledRunner:
    """An ONNX file under ONNX Runtime's profiler.

    Args:
        path: the file.
        scratch: the profile goes there.
        threads: of ONNX Runtime; None is its own choice.

    Attributes:
        caller: number of the call whose runs are to follow.
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
        self._callers: list[int] = []
        self.caller = 0

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        self._callers.append(self.caller)
        values = self._session.run(self._outputs, feed(inputs, temperature, self._inputs))
        return {name: torch.from_numpy(value) for name, value in zip(self._outputs, values, strict=True)}

    def events(self) -> defaultdict[int, list[dict[str, Any]]]:
        """What was recorded, by the `caller` of the run; ends the profile."""
        events: list[dict[str, Any]] = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        starts = sorted(event["ts"] for event in events if event["name"] == RUN)
        found: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        for event in events:
            run = bisect_right(starts, event["ts"]) - 1
            if run >= 0:
                found[self._callers[run]].append(event)
        return found


def profile(
    described: Artifact, calls: Mapping[Case, Sequence[Inputs]], scratch: Path, threads: int | None
) -> dict[Case, Operators]:
    """Run calls under ONNX Runtime's profiler, each once, after a warm-up.

    Args:
        described: an artifact of ONNX Runtime.
        calls: of every case.
        scratch: a folder for the profiler's files.
        threads: of ONNX Runtime.
    """
    runners = {part: ProfiledRunner(path, scratch, threads) for part, path in described.part_files.items()}
    for case, inputs in calls.items():  # allocates memory, which later runs use again
        run_request(described.config, runners, inputs[0], case.temperature)
    order = turns(calls)
    for number, (case, which) in enumerate(order, 1):
        for runner in runners.values():
            runner.caller = number
        run_request(described.config, runners, calls[case][which], case.temperature)
    recorded = [runner.events() for runner in runners.values()]
    found: dict[Case, list[Operators]] = {case: [] for case in calls}
    for number, (case, _) in enumerate(order, 1):
        found[case].append(summarize_events([event for events in recorded for event in events[number]], case.batch))
    return {case: typical(operators) for case, operators in found.items()}


def turns(calls: Mapping[Case, Sequence[Inputs]]) -> list[tuple[Case, int]]:
    """All calls, the cases taking turns."""
    most = max(len(inputs) for inputs in calls.values())
    return [(case, number) for number in range(most) for case, inputs in calls.items() if number < len(inputs)]


def typical(calls: Sequence[Operators]) -> Operators:
    """Of a request of several calls: medians of the times, the mean of the multiply-adds."""
    names = dict.fromkeys(name for call in calls for name in call.milliseconds)
    milliseconds = {name: statistics.median(call.milliseconds.get(name, 0.0) for call in calls) for name in names}
    counted = [call.gflops for call in calls if call.gflops is not None]
    gflops = statistics.mean(counted) if counted else None
    each = [call.milliseconds for call in calls]
    return Operators(calls[0].profiler, dict(Counter(milliseconds).most_common()), gflops, each)


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
