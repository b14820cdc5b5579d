"""Packed NLVR of base size, fp16, whole inference in one CUDA graph: right, free of waits, and how fast beside dense.

Rooms of the layers are chosen on the stage's own requests. Candidates take turns in every round (`take_turns`). Dense
has texts filled up to one length, in the same graphs; compiled by torch.compile as well, while there is time.
"""

import copy
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.kit.goals import goals
from benchmarks.kit.stage import StageRun
from benchmarks.kit.stages.captured import Captured
from benchmarks.kit.stages.model import Call, compile_blocks, forward, giga, take_turns
from benchmarks.kit.stages.models import nlvr_requests, synchronizer, use_kernels
from benchmarks.kit.stages.packed_model import (
    STARTS,
    PackedBatch,
    PackedNlvr,
    Rooms,
    answer,
    packed_requests,
    too_small,
)
from benchmarks.kit.trace import profile_call
from export.validate.tolerances import TOLERANCES
from madtp.models.nlvr import NlvrOutput
from madtp.ops.kernels import without_kernels

BATCHES, REHEARSED = (32, 1, 8, 128, 64, 16, 2, 4), (2,)  # those that say most come first
POOL, REHEARSED_POOL = 192, 3  # requests
EXACT_BATCH = 4  # in fp32
EXACT_TOLERANCE = 1e-3  # of logits of base size in fp32: products of other sizes add up in other orders
ROUNDS_SECONDS = 1.5  # of one batch's rounds
COMPILE_SECONDS = 12.0  # less left than this, or than the last one took, and the next batch is not compiled
EAGER, DENSE, COMPILED = "dense, SDPA, eager", "dense, SDPA", "dense, torch.compile"
PACKED, LOSSLESS = "packed", "packed, room for everything"
Reference = Callable[[PackedNlvr, Mapping[str, Tensor]], NlvrOutput]


def run(stage: StageRun) -> bool:
    """Measure; passes if every replay is right and without waits, and overflows are noticed. Speed decides nothing."""
    use_kernels(stage)
    batches = REHEARSED if stage.rehearse else BATCHES
    model = nlvr_requests(stage, 1, torch.float32).model
    pool = packed_requests(stage, model, REHEARSED_POOL if stage.rehearse else POOL)
    packed = PackedNlvr.seek(stage, model, pool)
    stage.save(exact=check_exact(packed, REHEARSED[0] if stage.rehearse else EXACT_BATCH), batches={}, compiled={})
    if not stage.rehearse:
        packed = PackedNlvr.seek(stage, model.half(), pool)
    stage.save(temperature=packed.tau, requests=packed.requests)
    for batch in batches:
        stage.save(batches={**stage.found["batches"], str(batch): measure_batch(packed, batch)})
        stage.save(goals=goals(stage.found))
    measure_compiled(packed, batches)
    stage.save(goals=goals(stage.found))
    return stage.found["exact"]["passed"] and all(entry["passed"] for entry in stage.found["batches"].values())


def check_exact(packed: PackedNlvr, size: int) -> dict[str, Any]:
    """In float32, where products of other sizes decide alike: replays against what every request gets alone."""
    replays = check_replays(packed, size, PackedBatch(packed, size, packed.rooms(size)), {"alone": alone})
    count = size * len(replays)
    same, worst = (sum(one["alone"]["same_counts"] for one in replays), max(one["alone"]["worst"] for one in replays))
    passed = same == count and worst <= EXACT_TOLERANCE and not any(one["overflow"] for one in replays)
    return {"requests": count, "same_counts": same, "worst": worst, "passed": passed, "temperature": packed.tau}


def alone(packed: PackedNlvr, inputs: Mapping[str, Tensor]) -> NlvrOutput:
    """The reference: every request by itself in the dynamic layout, without what fills up its text, and in torch."""
    outputs = []
    with without_kernels(packed.stage.device):
        for request, words in enumerate(inputs["attention_mask"].sum(dim=1).tolist()):
            own = {name: tensor[request : request + 1] for name, tensor in inputs.items()}
            own |= {name: own[name][:, :words] for name in ("input_ids", "attention_mask")}
            outputs.append(answer(packed.model, own, packed.temperature))
    logits, vision, text = (torch.stack(values) for values in zip(*outputs, strict=True))
    return NlvrOutput(logits.flatten(0, 1), vision.transpose(0, 1).flatten(0, 1), text.flatten(0, 1))


def exact(packed: PackedNlvr, inputs: Mapping[str, Tensor]) -> NlvrOutput:
    """As many rows as are needed."""
    return answer(packed.exact, inputs, packed.temperature)


def check_replays(
    packed: PackedNlvr, size: int, captured: PackedBatch, references: Mapping[str, Reference]
) -> list[dict[str, Any]]:
    """Replay on different requests, next to references."""
    found = []
    for start in STARTS:
        inputs = packed.batch(size, start)
        captured.load(inputs)
        captured()
        entry: dict[str, Any] = {"first_request": start, "overflow": captured.overflowed}
        got = NlvrOutput(*(value.clone() for value in captured.output))
        found.append(
            entry | {name: agreement(got, reference(packed, inputs)) for name, reference in references.items()}
        )
    return found


def agreement(got: NlvrOutput, expected: NlvrOutput) -> dict[str, Any]:
    """How many requests keep equally many tokens in all layers, and of these the largest difference of logits."""
    requests = len(got.logits)
    vision = (got.vision_token_counts == expected.vision_token_counts).all(dim=1).unflatten(0, (2, -1)).all(dim=0)
    same = vision & (got.text_token_counts == expected.text_token_counts).all(dim=1)
    worst = (got.logits.float() - expected.logits.float()).abs()[same]
    return {
        "requests": requests,
        "same_counts": int(same.sum()),
        "same_answers": int((got.logits.argmax(dim=1) == expected.logits.argmax(dim=1)).sum()),
        "worst": float(worst.max()) if len(worst) else 0.0,
        "finite": bool(got.logits.isfinite().all()),
    }


def measure_batch(packed: PackedNlvr, batch: int) -> dict[str, Any]:
    """Check and time one batch size."""
    stage, begun, inputs = packed.stage, time.monotonic(), packed.batch(batch)
    rooms, dense = packed.rooms(batch), partial(forward, packed.model, inputs, 0.0)
    captured, lossless = PackedBatch(packed, batch, rooms), PackedBatch(packed, batch, packed.lossless(batch))

    def uncaptured(packed: PackedNlvr, inputs: Mapping[str, Tensor]) -> NlvrOutput:
        return answer(captured.model, inputs, packed.temperature)

    replays = check_replays(packed, batch, captured, {"uncaptured": uncaptured, "exact": exact})
    forced = force_overflow(packed, batch, rooms, lossless)
    waits = {name: waits_of(call, stage) for name, call in ((PACKED, captured), ("uncaptured", captured.replay.call))}
    for one in (captured, lossless):
        one.load(inputs)
        one.overflows.zero_()
    calls: dict[str, Call] = {EAGER: dense, DENSE: Captured(dense, stage), PACKED: captured, LOSSLESS: lossless}
    timings = take_turns(calls, 0.0 if stage.rehearse else ROUNDS_SECONDS, synchronizer(stage))
    overflows = {name: int(one.overflows) for name, one in ((PACKED, captured), (LOSSLESS, lossless))}
    costs = {EAGER: giga(dense), PACKED: giga(captured.replay.call), LOSSLESS: giga(lossless.replay.call)}
    kept = giga(partial(exact, packed, inputs))
    entry = {
        "rooms": rooms,
        "room": captured.room,
        "gflops": {"dense": costs[EAGER], "kept": kept, "executed": costs[PACKED]},
        "latency_us": timings,
        "replays": replays,
        "overflows_while_timed": overflows,
        "forced_overflow": forced,
        "waits": waits,
        "seconds": time.monotonic() - begun,
    }
    return {**entry, "passed": is_right(entry)}


def is_right(entry: Mapping[str, Any]) -> bool:
    """Whether replays give what the model gives uncaptured, nothing overflowed, nothing waited.

    The exact model's products have other sizes, so in fp16 a token at the threshold may go either way: what it gives is
    reported, and `check_exact` decides.
    """
    floor = TOLERANCES["fp16"].floor
    return (
        all(
            not replay["overflow"]
            and replay["uncaptured"]["finite"]
            and replay["uncaptured"]["same_counts"] == replay["uncaptured"]["requests"]
            and replay["uncaptured"]["worst"] <= floor
            for replay in entry["replays"]
        )
        and not any(entry["overflows_while_timed"].values())
        and entry["forced_overflow"]["passed"]
        and not any(one["synchronisations"] or one["refused"] for one in entry["waits"].values())
    )


def force_overflow(packed: PackedNlvr, batch: int, rooms: Rooms, lossless: PackedBatch) -> dict[str, Any]:
    """With too little room in one layer every replay says so; the graph with room for everything answers then."""
    short = PackedBatch(packed, batch, too_small(rooms, batch))
    short.overflows.zero_()
    noticed, answered = 0, []
    for start in STARTS:
        inputs = packed.batch(batch, start)
        short.load(inputs)
        short()
        noticed += short.overflowed
        lossless.load(inputs)
        lossless()
        answered.append(agreement(lossless.output, answer(lossless.model, inputs, packed.temperature)))
    right = all(entry["same_counts"] == batch and entry["worst"] <= TOLERANCES["fp16"].floor for entry in answered)
    counted = int(short.overflows)
    passed = noticed == counted == len(STARTS) and right and not lossless.overflowed
    return {
        "calls": len(STARTS),
        "noticed": noticed,
        "counted": counted,
        "answered_by_lossless": right,
        "passed": passed,
    }


def waits_of(call: Call, stage: StageRun) -> dict[str, Any]:
    """Host synchronisations of a call: as the profiler saw them, and whether torch refuses one when told to."""
    profile = profile_call(call, stage.device)
    refused = ""
    if not stage.rehearse:
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        except RuntimeError as error:
            refused = " ".join(str(error).split())[:300]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {**profile, "refused": refused}


def measure_compiled(packed: PackedNlvr, batches: tuple[int, ...]) -> None:
    """The dense model compiled and captured beside the others, batch by batch while there is time."""
    stage = packed.stage
    compiled = copy.deepcopy(packed.model)
    compile_blocks(compiled, stage)
    needed = 0.0 if stage.rehearse else COMPILE_SECONDS
    for batch in batches:
        begun, inputs = time.monotonic(), packed.batch(batch)
        if stage.seconds_left < needed:
            entry: dict[str, Any] = {"not_run": "time ran out"}
        else:
            try:
                entry = {"latency_us": time_compiled(packed, compiled, batch, inputs)}
            except Exception as error:  # torch refuses compilation and capture in many ways
                entry = {"not_run": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            needed = max(needed, time.monotonic() - begun)
        stage.save(compiled={**stage.found["compiled"], str(batch): entry})


def time_compiled(
    packed: PackedNlvr, compiled: torch.nn.Module, batch: int, inputs: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Latencies in the same rounds."""
    stage = packed.stage
    calls: dict[str, Call] = {
        COMPILED: Captured(partial(forward, compiled, inputs, 0.0), stage),
        DENSE: Captured(partial(forward, packed.model, inputs, 0.0), stage),
        PACKED: PackedBatch(packed, batch, packed.rooms(batch)),
    }
    return take_turns(calls, 0.0 if stage.rehearse else ROUNDS_SECONDS, synchronizer(stage))
