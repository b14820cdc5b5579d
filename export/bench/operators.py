"""Time by kind of operator, with the multiply-adds of its matrix products, or by kind of layer of a plan.

Short runs of their own with the profilers of ONNX Runtime and TensorRT: profiling costs time, so nothing else is timed
meanwhile. The cases take turns, and medians over their calls count, so that other processes do not look like a loss.
"""

import json
import re
import statistics
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.bench.calls import Case, Inputs, Kept, request_call
from export.bench.multiply_adds import ENDS, ends_of, multiply_adds
from export.bench.statistics import evenly_spaced
from export.graph.onnx_graph import OnnxGraph, open_graph
from export.runtime.artifact import Artifact
from export.runtime.execution import BODIES, Execution
from export.runtime.onnx_runner import float16_inputs
from export.runtime.runner import RunnerOptions, feed
from madtp.files.scratch import scratch_folder
from madtp.ops.spec import ALL_OPS
from madtp.tasks.requests import Outputs, Runner

PROFILED_CALLS = 8  # of the smallest batch
FEWEST_PROFILED_CALLS = 2  # of larger ones
BETWEEN = "between operators"
# ONNX Runtime inlines functions and names their nodes so; the name of the function is the one given below.
OF_FUNCTION = re.compile(rf"^_inlfunc_.*(?<![A-Za-z])({'|'.join(spec.onnx_name for spec in ALL_OPS)})")
NUMBERS = re.compile(r"\d+")
KERNEL = "_kernel_time"
RUN = "model_run"

Opener = Callable[[Artifact, RunnerOptions], dict[str, Runner]]


@dataclass(frozen=True)
class Operators:
    """The profile of one request.

    `milliseconds` are by kind of operator, custom ops as wholes, and BETWEEN, the rest of ONNX Runtime's time; for a
    plan they are by kind of layer.
    """

    profiler: str
    milliseconds: dict[str, float]
    gflops: float | None  # multiply-adds (1e9) of matrix products and convolutions as executed; None for a plan
    calls: list[dict[str, float]] = field(default_factory=list)  # of which `milliseconds` are the medians


def profile(
    described: Artifact,
    calls: Mapping[Case, Sequence[Inputs]],
    kept: Mapping[Case, Kept],
    opener: Opener,
    options: RunnerOptions,
) -> dict[Case, Operators]:
    """Profile representative calls of every case, each once, after a warm-up; of `options`, the threads and the
    execution count."""
    chosen = _representative(calls, kept)
    with scratch_folder() as scratch:
        found = (
            _layers(described, chosen, opener)
            if described.manifest.is_plan
            else _nodes(described, chosen, scratch, options)
        )
    return {case: typical(operators) for case, operators in found.items()}


def _representative(calls: Mapping[Case, Sequence[Inputs]], kept: Mapping[Case, Kept]) -> dict[Case, list[Inputs]]:
    """Calls evenly spaced over the tokens that they keep, the same at every temperature; few of large batches."""
    smallest = min(case.batch for case in calls)
    chosen = {}
    for case, inputs in calls.items():
        pruned = max(other for other in kept if other.batch == case.batch)
        count = max(PROFILED_CALLS * smallest // case.batch, FEWEST_PROFILED_CALLS)
        chosen[case] = [inputs[number] for number in evenly_spaced(kept[pruned].total, count)]
    return chosen


def _layers(described: Artifact, calls: Mapping[Case, Sequence[Inputs]], opener: Opener) -> dict[Case, list[Operators]]:
    milliseconds: defaultdict[str, float] = defaultdict(float)
    runners = opener(described, RunnerOptions(layer_milliseconds=milliseconds))
    made = {case: request_call(described.config, runners, inputs, case) for case, inputs in calls.items()}
    for call in made.values():
        call(0)  # allocates memory, which later runs use again
    found: dict[Case, list[Operators]] = {case: [] for case in calls}
    for case, number in turns(calls):
        milliseconds.clear()
        made[case](number)
        found[case].append(summarize_layers(milliseconds, case.batch))
    return found


def _nodes(
    described: Artifact, calls: Mapping[Case, Sequence[Inputs]], scratch: Path, options: RunnerOptions
) -> dict[Case, list[Operators]]:
    execution = options.execution or BODIES
    runners = {
        part: ProfiledRunner(path, scratch, options.threads, execution) for part, path in described.part_files.items()
    }
    made = {case: request_call(described.config, runners, inputs, case) for case, inputs in calls.items()}
    for call in made.values():
        call(0)  # allocates memory, which later runs use again
    order = turns(calls)
    for caller, (case, number) in enumerate(order, 1):
        for runner in runners.values():
            runner.caller = caller
        made[case](number)
    recorded = [runner.events() for runner in runners.values()]
    found: dict[Case, list[Operators]] = {case: [] for case in calls}
    for caller, (case, _) in enumerate(order, 1):
        found[case].append(summarize_events([event for events in recorded for event in events[caller]], case.batch))
    return found


class ProfiledRunner:
    """An ONNX file under ONNX Runtime's profiler; set `caller` to the number of a call before its runs."""

    def __init__(self, path: Path, scratch: Path, threads: int | None, execution: Execution = BODIES) -> None:
        options = execution.session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(scratch / path.stem)
        graph = OnnxGraph.read(path)
        for function in graph.model.functions:
            for number, node in enumerate(function.node):
                node.name = f"{function.name}/{number}"
        self._ends = {node.name: names for node in graph.model.graph.node if (names := ends_of(node))}
        exposed = {name for names in self._ends.values() for name in names}
        self._session = open_graph(graph, options, sorted(exposed), providers=execution.providers)
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._float16 = float16_inputs(self._session)
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._exposed = exposed - {value.name for value in graph.model.graph.output}
        self._ran: list[tuple[int, Outputs]] = []  # the caller of every run, and all that came of it
        self.caller = 0

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        values = self._session.run(self._outputs, feed(inputs, temperature, self._inputs, self._float16))
        outputs = {name: torch.from_numpy(value) for name, value in zip(self._outputs, values, strict=True)}
        self._ran.append((self.caller, outputs))
        return {name: value for name, value in outputs.items() if name not in self._exposed}

    def events(self) -> defaultdict[int, list[dict[str, Any]]]:
        """What was recorded, by the `caller` of the run; ends the profile."""
        events: list[dict[str, Any]] = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        starts = sorted(event["ts"] for event in events if event["name"] == RUN)
        found: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        for event in events:
            run = bisect_right(starts, event["ts"]) - 1
            if run >= 0:
                caller, outputs = self._ran[run]
                if ends := self._ends.get(event["name"].removesuffix(KERNEL)):
                    event["args"][ENDS] = [outputs[name].tolist() for name in ends]
                found[caller].append(event)
        return found


def turns(calls: Mapping[Case, Sequence[Inputs]]) -> list[tuple[Case, int]]:
    """All calls, the cases taking turns."""
    most = max(len(inputs) for inputs in calls.values())
    return [(case, number) for number in range(most) for case, inputs in calls.items() if number < len(inputs)]


def typical(calls: Sequence[Operators]) -> Operators:
    """A request of several calls: medians of the times, the mean of the multiply-adds."""
    names = dict.fromkeys(name for call in calls for name in call.milliseconds)
    milliseconds = {name: statistics.median(call.milliseconds.get(name, 0.0) for call in calls) for name in names}
    counted = [call.gflops for call in calls if call.gflops is not None]
    gflops = statistics.mean(counted) if counted else None
    each = [call.milliseconds for call in calls]
    return Operators(calls[0].profiler, dict(Counter(milliseconds).most_common()), gflops, each)


def summarize_events(events: Iterable[Mapping[str, Any]], requests: int) -> Operators:
    """Add up ONNX Runtime's profile, whose times are microseconds, of so many requests."""
    milliseconds: Counter[str] = Counter()
    total = 0.0
    for event in events:
        name, duration = event["name"], event["dur"] / 1e3 / requests
        if event["cat"] == "Node" and name.endswith(KERNEL):
            operator = event["args"]["op_name"]
            function = OF_FUNCTION.match(name)
            milliseconds[function[1] if function else operator] += duration
            milliseconds[BETWEEN] -= duration
            total += multiply_adds(operator, event["args"])
        elif name == RUN:
            milliseconds[BETWEEN] += duration
    return Operators("ONNX Runtime's profiler", dict(milliseconds.most_common()), total / 1e9 / requests)


def summarize_layers(milliseconds: Mapping[str, float], requests: int) -> Operators:
    """Add up the times of a plan's layers; layers whose names differ only in numbers are of one kind."""
    kinds: defaultdict[str, float] = defaultdict(float)
    for name, value in milliseconds.items():
        kinds[NUMBERS.sub("#", name)] += value / requests
    return Operators("TensorRT's layer profiler", dict(kinds), None)
