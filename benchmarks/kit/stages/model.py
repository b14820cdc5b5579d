"""Whole NLVR of base size in fp16: the end-to-end gain of pruning, and where the time goes.

Candidates take turns in every round; a latency is the wall clock from the call to the end of its work on the device.
"""

import copy
import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.architectures import known_gpu
from benchmarks.gpu.measure import peak_bytes, summarize
from benchmarks.kit.predict import Work, expected_work, predict_model
from benchmarks.kit.stage import StageRun
from benchmarks.kit.stages import models
from benchmarks.kit.stages.captured import Captured
from benchmarks.kit.stages.models import Requests, nlvr_requests, synchronizer, use_kernels
from benchmarks.kit.trace import profile_call
from madtp import NlvrModel
from madtp.ops.flops import count_call

BATCHES = (32, 1, 8, 64)  # the one that says most comes first
REHEARSED = (1, 2)
COMPILER = "inductor"
COMPILE_SECONDS = 40.0  # less left than this, and the next batch is not compiled
RECOMPILATIONS = 64  # torch's own limit is met by four batches, and then it runs uncompiled and says nothing
SHARES = (0.5, 0.3, 0.2)  # of the dense model's GFLOPs
COLDEST, HOTTEST = 0.02, 8.0  # temperatures between which a share is looked for
STEPS = 7  # of that search: temperature within 5 %
WARMUP_ROUNDS = 3
LEAST_ROUNDS, MOST_ROUNDS = 5, 40
DENSE, GRAPH, UNPRUNED = "dense, SDPA, eager", "dense, torch.compile, CUDA graph", "ours, temperature 0"
Call = Callable[[], object]


def run(stage: StageRun) -> bool:
    """Measure; the stage passes if every candidate of ours ran and fewer tokens cost fewer GFLOPs."""
    use_kernels(stage)
    batches = REHEARSED if stage.rehearse else BATCHES
    requests = nlvr_requests(stage, max(batches), torch.float32 if stage.rehearse else torch.float16)
    compiled = copy.deepcopy(requests.model)
    compile_blocks(compiled, stage)
    works = {dense: layers_work(dense) for dense in (True, False)}
    stage.save(expected={"dense": vars(works[True]), "ours": vars(works[False])}, batches={}, compiled={}, seconds={})
    for batch in batches:
        begun = time.monotonic()
        entry = measure_batch(stage, requests, batch, works, seconds=0.06 * stage.seconds_left)
        stage.save(batches={**stage.found["batches"], str(batch): entry})
        last = entry["candidates"].get(candidate_names()[-1])
        if last is None or stage.seconds_left < COMPILE_SECONDS:
            graph: dict[str, Any] = {"not_run": "time ran out" if last else "there is nothing to compare with"}
        else:
            graph = measure_compiled(stage, requests, compiled, batch, last["temperature"])
        stage.save(compiled={**stage.found["compiled"], str(batch): graph})
        stage.save(seconds={**stage.found["seconds"], str(batch): time.monotonic() - begun})
    return all(falling(entry) for entry in stage.found["batches"].values())


def falling(entry: Mapping[str, Any]) -> bool:
    """Whether every candidate of ours ran, and fewer tokens cost fewer GFLOPs."""
    ours = [entry["candidates"].get(name, {}).get("gflops") for name in candidate_names()]
    return None not in ours and all(left >= right for left, right in itertools.pairwise(ours))


def candidate_names() -> list[str]:
    """Names of our candidates, densest first."""
    return [UNPRUNED, *(f"ours, {share:.0%} of the GFLOPs" for share in SHARES)]


def layers_work(dense: bool) -> Work:
    """Work of base-size NLVR on a GPU, counted on a small model on the CPU: it does not depend on tensor sizes."""
    base = models.BASE
    config = replace(models.SMALL, vit_depth=base.vit_depth, text_layers=base.text_layers, merge_from=base.merge_from)
    with torch.device("cpu"):
        model = NlvrModel(config).eval()
    images = torch.zeros(1, 3, config.image_size, config.image_size)
    ids = torch.zeros(1, models.WORDS, dtype=torch.int64)
    temperature: Tensor | float = 0.0 if dense else torch.full((), 1.0)
    return expected_work(lambda: model(images, images, ids, torch.ones_like(ids), temperature))


def forward(model: NlvrModel, inputs: Mapping[str, Tensor], temperature: Tensor | float) -> object:
    """One batch of requests."""
    with torch.inference_mode():
        return model(**inputs, temperature=temperature)


def measure_batch(
    stage: StageRun, requests: Requests, batch: int, works: Mapping[bool, Work], seconds: float
) -> dict[str, Any]:
    """Measure dense and pruned at one batch size, side by side; those that do not run get a reason."""
    inputs, synchronize = requests.inputs(batch), synchronizer(stage)
    not_run: dict[str, str] = {}
    calls: dict[str, Call] = {}
    temperatures: dict[str, float | None] = {}

    def offer(name: str, temperature: Tensor | float, tau: float | None) -> None:
        call = partial(forward, requests.model, inputs, temperature)
        try:
            call()
            synchronize()
        except Exception as error:  # out of memory, or kernels that refuse: the others can still be measured
            not_run[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        else:
            calls[name], temperatures[name] = call, tau

    offer(DENSE, 0.0, None)
    if DENSE not in calls:
        return {"candidates": {}, "not_run": not_run}
    dense_gflops = giga(calls[DENSE])
    offer(UNPRUNED, torch.full((), 0.0, device=stage.device), 0.0)
    for name, share in zip(candidate_names()[1:], SHARES, strict=True):
        if UNPRUNED in calls:  # without it nothing of ours runs
            steps = 3 if stage.rehearse else STEPS
            tau = find_temperature(requests.model, inputs, share * dense_gflops, steps)
            offer(name, torch.full((), tau, device=stage.device), tau)
    timings = take_turns(calls, seconds, synchronize)
    candidates = {
        name: describe(stage, call, batch, temperatures[name], timings[name], works[name == DENSE])
        for name, call in calls.items()
    }
    add_ratios(candidates)
    return {"candidates": candidates, "not_run": not_run}


def describe(
    stage: StageRun, call: Call, batch: int, temperature: float | None, timing: dict[str, Any], work: Work
) -> dict[str, Any]:
    """Entry of one candidate for the page."""
    cost = giga(call)
    gpu = None if stage.rehearse else known_gpu(torch.cuda.get_device_name())
    return {
        "temperature": temperature,
        "gflops": cost,
        "latency_us": timing,
        "requests_per_second": batch / (timing["median_us"] * 1e-6),
        "predicted_us": None if gpu is None else predict_model(gpu, cost, work) * 1e6,
        "expected": vars(work),
        "peak_bytes": None if stage.rehearse else peak_bytes(call),
        "profile": profile_call(call, stage.device),
    }


def add_ratios(candidates: Mapping[str, dict[str, Any]]) -> None:
    """Add GFLOPs ratio, speed-up and efficiency, all relative to the eager dense model."""
    dense = candidates[DENSE]
    for entry in candidates.values():
        entry["gflops_ratio"] = dense["gflops"] / entry["gflops"]
        entry["speed_up"] = dense["latency_us"]["median_us"] / entry["latency_us"]["median_us"]
        entry["efficiency"] = entry["speed_up"] / entry["gflops_ratio"]


def giga(call: Call) -> float:
    """GFLOPs of a call for the whole batch, a multiply-add counting one."""
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
    """Latency of each in microseconds: one call per round, the order rotating, until the time is used."""
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


def compile_blocks(model: NlvrModel, stage: StageRun) -> None:
    """torch.compile of every layer: layers are alike, so this takes a twelfth of the time for the whole model."""
    backend = "eager" if stage.rehearse else COMPILER  # the rehearsal traces, and spares the machine a compiler
    torch._dynamo.config.recompile_limit = RECOMPILATIONS
    for layer in (*model.visual_encoder.blocks, *model.text_encoder.encoder.layer):
        layer.compile(dynamic=False, backend=backend)


def measure_compiled(
    stage: StageRun, requests: Requests, compiled: NlvrModel, batch: int, temperature: float
) -> dict[str, Any]:
    """The dense model compiled and replayed as a CUDA graph, next to the eager one and our strongest pruning."""
    inputs, last = requests.inputs(batch), candidate_names()[-1]
    begun = time.monotonic()
    try:
        replay = Captured(partial(forward, compiled, inputs, 0.0), stage)
    except Exception as error:  # torch refuses compilation and capture in many ways
        return {"not_run": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    calls: dict[str, Call] = {
        DENSE: partial(forward, requests.model, inputs, 0.0),
        GRAPH: replay,
        last: partial(forward, requests.model, inputs, torch.full((), temperature, device=stage.device)),
    }
    prepared = time.monotonic() - begun
    timings = take_turns(calls, min(4.0, 0.06 * stage.seconds_left), synchronizer(stage))
    return {"prepared_seconds": prepared, "latency_us": timings}
