"""Whole NLVR of base size in fp16: what pruning brings end to end, and where the time goes.

Candidates take turns in every round; a latency is the wall clock from the call to the end of its work on the device.
"""

import copy
import itertools
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.measure import peak_bytes, summarize
from benchmarks.kit.predict import predict_model
from benchmarks.kit.stage import Stage
from benchmarks.kit.stages.models import Requests, nlvr_requests, synchronizer, use_kernels
from benchmarks.kit.trace import profile_call
from madtp import NlvrModel
from madtp.flops import count_call

BATCHES = (1, 8, 32, 64)
REHEARSED = (1, 2)
COMPILER = "inductor"
COMPILED_FIRST = 32  # every batch is compiled anew, which takes a quarter of a minute
SHARES = (0.5, 0.3, 0.2)  # of the dense model's GFLOPs
COLDEST, HOTTEST = 0.02, 8.0  # temperatures between which a share is looked for
STEPS = 7  # of that search: temperature within 5 %
WARMUP_ROUNDS = 3
LEAST_ROUNDS, MOST_ROUNDS = 5, 40
DENSE, GRAPH, UNPRUNED = "dense, SDPA, eager", "dense, torch.compile, CUDA graph", "ours, temperature 0"
Call = Callable[[], object]


def run(stage: Stage) -> bool:
    """Measure; passes where every candidate of ours ran and the counts fall as the temperature rises."""
    use_kernels(stage)
    batches = REHEARSED if stage.rehearse else BATCHES
    requests = nlvr_requests(stage, max(batches), torch.float32 if stage.rehearse else torch.float16)
    found: dict[str, Any] = {}
    for batch in batches:
        begun = time.monotonic()
        found[str(batch)] = measure_batch(stage, requests, batch, seconds=0.08 * stage.seconds_left)
        stage.save(batches=found, seconds={**stage.found.get("seconds", {}), str(batch): time.monotonic() - begun})
    stage.save(compiled={})
    compiled = copy.deepcopy(requests.model)
    compile_blocks(compiled, stage)
    for batch in sorted(batches, key=lambda batch: batch != COMPILED_FIRST):
        if stage.seconds_left < 15:
            stage.save(compiled={**stage.found["compiled"], str(batch): {"not_run": "time ran out"}})
            continue
        measured = measure_compiled(stage, requests, compiled, batch, found[str(batch)])
        stage.save(compiled={**stage.found["compiled"], str(batch): measured})
    return all(falling(entry) for entry in found.values())


def falling(entry: Mapping[str, Any]) -> bool:
    """Whether every candidate of ours ran, and fewer tokens cost fewer GFLOPs."""
    ours = [entry["candidates"].get(name, {}).get("gflops") for name in candidate_names()]
    return None not in ours and all(left >= right for left, right in itertools.pairwise(ours))


def candidate_names() -> list[str]:
    """Of ours, densest first."""
    return [UNPRUNED, *(f"ours, {share:.0%} of the GFLOPs" for share in SHARES)]


def forward(model: NlvrModel, inputs: Mapping[str, Tensor], temperature: Tensor | float) -> object:
    """One batch of requests."""
    with torch.inference_mode():
        return model(**inputs, temperature=temperature)


def measure_batch(stage: Stage, requests: Requests, batch: int, seconds: float) -> dict[str, Any]:
    """Dense and pruned at one batch size, side by side."""
    inputs, synchronize = requests.inputs(batch), synchronizer(stage)
    calls: dict[str, Call] = {DENSE: partial(forward, requests.model, inputs, 0.0)}
    temperatures: dict[str, float] = {}
    dense_gflops = giga(calls[DENSE])
    for name, share in zip(candidate_names(), (None, *SHARES), strict=True):
        steps = 3 if stage.rehearse else STEPS
        tau = 0.0 if share is None else find_temperature(requests.model, inputs, share * dense_gflops, steps)
        temperatures[name] = tau
        calls[name] = partial(forward, requests.model, inputs, torch.full((), tau, device=stage.device))
    timings = take_turns(calls, seconds, synchronize)
    candidates = {}
    for name, call in calls.items():
        profile = profile_call(call, stage.device)
        cost = giga(call) if name != DENSE else dense_gflops
        candidates[name] = {
            "temperature": temperatures.get(name),
            "gflops": cost,
            "latency_us": timings[name],
            "requests_per_second": batch / (timings[name]["median_us"] * 1e-6),
            "predicted_us": None if stage.rehearse else predict(cost, profile),
            "peak_bytes": None if stage.rehearse else peak_bytes(call),
            "profile": profile,
        }
    add_ratios(candidates)
    return {"candidates": candidates}


def predict(gflops: float, profile: Mapping[str, Any]) -> float:
    """Microseconds that a call is predicted to take."""
    return predict_model(gflops, profile["launches"], profile["synchronisations"]) * 1e6


def add_ratios(candidates: Mapping[str, dict[str, Any]]) -> None:
    """GFLOPs ratio, speed-up and how much of the one became the other, all against the eager dense model."""
    dense = candidates[DENSE]
    for entry in candidates.values():
        entry["gflops_ratio"] = dense["gflops"] / entry["gflops"]
        entry["speed_up"] = dense["latency_us"]["median_us"] / entry["latency_us"]["median_us"]
        entry["efficiency"] = entry["speed_up"] / entry["gflops_ratio"]


def giga(call: Call) -> float:
    """GFLOPs of a call, of the whole batch, a multiply-add counting one."""
    return count_call(call).giga


def find_temperature(model: NlvrModel, inputs: Mapping[str, Tensor], wanted: float, steps: int) -> float:
    """The temperature at which this batch takes about `wanted` GFLOPs: they fall as it rises."""
    device = inputs["image0"].device
    cold, hot = math.log(COLDEST), math.log(HOTTEST)
    for _ in range(steps):
        middle = (cold + hot) / 2
        cost = giga(partial(forward, model, inputs, torch.full((), math.exp(middle), device=device)))
        cold, hot = (middle, hot) if cost > wanted else (cold, middle)
    return math.exp((cold + hot) / 2)


def take_turns(calls: Mapping[str, Call], seconds: float, synchronize: Call) -> dict[str, dict[str, Any]]:
    """Latency of each in microseconds: one call a round, the order turning, until the time is used."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    names, begun = list(calls), time.monotonic()
    for index in range(WARMUP_ROUNDS + MOST_ROUNDS):
        if index >= WARMUP_ROUNDS + LEAST_ROUNDS and time.monotonic() - begun > seconds:
            break
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            synchronize()
            start = time.perf_counter()
            calls[name]()
            synchronize()
            if index >= WARMUP_ROUNDS:
                times[name].append((time.perf_counter() - start) * 1e6)
    return {name: vars(summarize(values)) for name, values in times.items()}


def compile_blocks(model: NlvrModel, stage: Stage) -> None:
    """torch.compile of every layer: layers are alike, so that this takes a twelfth of compiling the whole."""
    backend = "eager" if stage.rehearse else COMPILER  # the rehearsal traces, and spares the machine a compiler
    for layer in (*model.visual_encoder.blocks, *model.text_encoder.encoder.layer):
        layer.compile(dynamic=False, backend=backend)


def measure_compiled(
    stage: Stage, requests: Requests, compiled: NlvrModel, batch: int, entry: Mapping[str, Any]
) -> dict[str, Any]:
    """The dense model compiled and replayed as a CUDA graph, beside the eager one and our strongest pruning."""
    inputs = requests.inputs(batch)
    last = candidate_names()[-1]
    tau = entry["candidates"][last]["temperature"]
    begun = time.monotonic()
    try:
        replay = capture(partial(forward, compiled, inputs, 0.0), stage)
    except Exception as error:  # torch refuses compilation and capture in many ways
        return {"not_run": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    calls: dict[str, Call] = {
        DENSE: partial(forward, requests.model, inputs, 0.0),
        GRAPH: replay,
        last: partial(forward, requests.model, inputs, torch.full((), tau, device=stage.device)),
    }
    prepared = time.monotonic() - begun
    timings = take_turns(calls, min(5.0, 0.1 * stage.seconds_left), synchronizer(stage))
    return {"prepared_seconds": prepared, "latency_us": timings}


def capture(call: Call, stage: Stage) -> Call:
    """The call as a CUDA graph's replay; the call itself in a rehearsal."""
    if stage.rehearse:
        call()
        return call
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def replay(_held: object = kept) -> None:  # the graph writes into what the call returned
        graph.replay()

    return replay
