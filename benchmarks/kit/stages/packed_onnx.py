"""Packed NLVR in ONNX Runtime, each batch size a session in a CUDA graph; part of the stage onnx_runtime.

One graph is traced, in which every layer has room for all that comes in; a file for a batch size and rooms differs from
it in sizes alone, and has the same weights.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from onnxscript import ir
from torch import Tensor

from benchmarks.kit.fixed_graph import fix_sizes
from benchmarks.kit.goals import goals
from benchmarks.kit.onnx_session import FixedCall, OnnxSession
from benchmarks.kit.stage import StageRun
from benchmarks.kit.stages.captured import Captured
from benchmarks.kit.stages.model import Call, forward, take_turns
from benchmarks.kit.stages.models import WORDS, synchronizer
from benchmarks.kit.stages.packed import BATCHES, DENSE, PACKED, POOL, REHEARSED, REHEARSED_POOL, agreement
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
from export.artifact.manifest import OVERFLOW
from export.graph.capacities import add_overflow
from export.graph.precision import precision_pass
from export.graph.trace import save_onnx, trace_part
from madtp import NlvrModel
from madtp.models.nlvr import NlvrOutput
from madtp.models.parts import Part, parts_of

EXACT_BATCH = 2  # in fp32
TOLERANCE = 1e-3  # of logits of base size in float32, where the same tokens stay: sums of other orders add up
TRACE_SECONDS = 35.0  # less left than this, and it is not traced
BATCH_SECONDS = 8.0  # less left than this, and the next batch is not measured
ROUNDS_SECONDS = 1.5
ONNX_DENSE, ONNX_PACKED = "ONNX Runtime, dense, no graph", "ONNX Runtime, packed"
WAITS_AT_THE_END = 1  # a run of a session returns when the device is done


def export_base(
    part: Part,
    scratch: Path,
    name: str,
    precisions: tuple[str, ...],
    passes: Sequence[Callable[[ir.Model], None]] = (),
) -> dict[str, Path]:
    """Trace a part once and write it in these precisions, float32 first: its graph is changed for the next."""
    program, files = trace_part(part), {}
    for change in passes:
        change(program.model)
    for precision in precisions:
        precision_pass(precision, runnable=True)(program.model)
        files[precision] = scratch / f"{name}-{precision}.onnx"
        save_onnx(program, files[precision], external_data=True)
    return files


class PackedFiles:
    """Files of the packed model.

    Attributes:
        refused: why ONNX Runtime captures no run; empty if it does.
    """

    def __init__(self, stage: StageRun, model: NlvrModel, library: Path, scratch: Path) -> None:
        part = parts_of(model.packed_copy(sized=True))["model"]
        self._stage, self._library = stage, library
        self._files = export_base(part, scratch, "packed", ("fp32", "fp16"), [add_overflow])
        self.refused = ""

    def call(self, precision: str, packed: PackedNlvr, size: int, rooms: Rooms) -> FixedCall:
        """A captured call of a batch size; where that is refused, one of node after node."""
        file = self._files[precision].with_name(f"{precision}-{size}.onnx")
        fix_sizes(self._files[precision], file, rooms, {"batch": size, "text": WORDS})
        if not self.refused:
            try:
                call = self._open(file, packed, size, capture=True)
                call()  # which captures
            except Exception as error:  # they have no common type
                self.refused = " ".join(str(error).split())[:500] or type(error).__name__
            else:
                return call
        return self._open(file, packed, size, capture=False)

    def _open(self, file: Path, packed: PackedNlvr, size: int, capture: bool) -> FixedCall:
        session = OnnxSession(file, self._library, self._stage.device, capture=capture)
        return session.fixed(packed.batch(size), packed.tau)


def measure_packed(stage: StageRun, model: NlvrModel, library: Path, scratch: Path, dense: OnnxSession | None) -> bool:
    """Check in fp32, then check and time fp16, batch by batch while there is time; whether all that ran is right.

    Args:
        model: in fp16 on the stage's device (float32 in a rehearsal).
        library: of ops.
        dense: the dense graph in fp16.
    """
    if stage.seconds_left < TRACE_SECONDS and not stage.rehearse:
        stage.save(packed={"not_run": "time ran out"})
        return True
    pool = packed_requests(stage, model, REHEARSED_POOL if stage.rehearse else POOL)
    packed = PackedNlvr.seek(stage, model, pool)
    wide = copy.deepcopy(model).cpu().float()
    files = PackedFiles(stage, wide, library, scratch)
    found: dict[str, Any] = {"temperature": packed.tau, "batches": {}}
    exact = PackedNlvr(stage, wide.to(stage.device), pool, packed.tau)
    found["exact"] = check_exact(files, exact)
    stage.save(packed=found)
    batches = REHEARSED if stage.rehearse else BATCHES
    for batch in batches:
        if stage.seconds_left < BATCH_SECONDS and not stage.rehearse:
            stage.save(packed={**found, "not_run": f"batches from {batch} on: time ran out"})
            break
        found["batches"][str(batch)] = measure_batch(files, packed, batch, dense, forced=batch == batches[0])
        found |= {"goals": goals(found, ONNX_PACKED, WAITS_AT_THE_END), "refused": files.refused}
        stage.save(packed=found)
    return found["exact"]["passed"] and not files.refused and all(one["passed"] for one in found["batches"].values())


def ask(call: FixedCall, inputs: Mapping[str, Tensor]) -> tuple[NlvrOutput, int]:
    """What it gives, and whether a layer had too little room."""
    call.load(inputs)
    call()
    outputs = call.read()
    return NlvrOutput(*(outputs[name] for name in NlvrOutput._fields)), int(outputs[OVERFLOW] > 0)


def check_exact(files: PackedFiles, exact: PackedNlvr) -> dict[str, Any]:
    """In float32: replays on different requests against torch, with as many rows as are needed."""
    call = files.call("fp32", exact, EXACT_BATCH, exact.rooms(EXACT_BATCH))
    replays, overflows = [], 0
    for start in STARTS:
        inputs = exact.batch(EXACT_BATCH, start)
        got, overflow = ask(call, inputs)
        overflows += overflow
        replays.append(agreement(got, answer(exact.exact, inputs, exact.temperature)))
    same, count = sum(entry["same_counts"] for entry in replays), EXACT_BATCH * len(replays)
    worst = max(entry["worst"] for entry in replays)
    passed = same == count and worst <= TOLERANCE and not overflows
    return {"requests": count, "same_counts": same, "worst": worst, "overflows": overflows, "passed": passed}


def measure_batch(
    files: PackedFiles, packed: PackedNlvr, batch: int, dense: OnnxSession | None, forced: bool
) -> dict[str, Any]:
    """Replays on different requests next to torch on our kernels; overflows; host waits; latency beside dense."""
    stage, rooms = packed.stage, packed.rooms(batch)
    torchs, call = PackedBatch(packed, batch, rooms), files.call("fp16", packed, batch, rooms)
    replays, overflows = [], 0
    for start in STARTS:
        inputs = packed.batch(batch, start)
        got, overflow = ask(call, inputs)
        torchs.load(inputs)
        torchs()
        overflows += overflow
        replays.append(agreement(got, torchs.output))
    entry: dict[str, Any] = {"rooms": rooms, "replays": replays, "overflows": overflows}
    if forced:
        entry["forced_overflow"] = force_overflow(files, packed, batch, rooms)
    inputs = packed.batch(batch)
    call.load(inputs)
    torchs.load(inputs)
    entry["waits"] = {ONNX_PACKED: profile_call(call, stage.device)}
    calls: dict[str, Call] = {DENSE: Captured(partial(forward, packed.model, inputs, 0.0), stage)}
    if dense is not None:
        calls[ONNX_DENSE] = dense.bound(inputs, 0.0)
    calls |= {PACKED: torchs, ONNX_PACKED: call}
    entry["latency_us"] = take_turns(calls, 0.0 if stage.rehearse else ROUNDS_SECONDS, synchronizer(stage))
    finite = all(replay["finite"] for replay in replays)
    noticed = entry.get("forced_overflow", {"passed": True})["passed"]
    return {**entry, "passed": finite and noticed and not overflows}


def force_overflow(files: PackedFiles, packed: PackedNlvr, batch: int, rooms: Rooms) -> dict[str, Any]:
    """With too little room in one layer every replay says so."""
    short = files.call("fp16", packed, batch, too_small(rooms, batch))
    noticed = sum(ask(short, packed.batch(batch, start))[1] for start in STARTS)
    return {"calls": len(STARTS), "noticed": noticed, "passed": noticed == len(STARTS)}
