"""Both ops at base size, fp16, next to torch's alternatives; TokenCompact against the bandwidth of a copy."""

from typing import Any

import torch

from benchmarks.gpu.candidates import BASE, Candidates, Sizes
from benchmarks.gpu.floor import compact_bytes
from benchmarks.gpu.measure import copy_bandwidth, device_state, flush_l2
from benchmarks.gpu.results import OPS, measure_op
from benchmarks.kit.flash import unpack_flash_3
from benchmarks.kit.stage import StageRun
from benchmarks.kit.trace import profile_call
from madtp.ops.library import load_library

SMALL = Sizes(length=40, width=32, heads=1, alignments=8, device="cpu")
ORDER = (32, 128, 1, 8)  # of batches: those that targets are set for come first
COMPILED = 32  # the batch at which torch.compile takes part: it takes its time
ROUNDS = 30


def run(stage: StageRun) -> bool:
    """Measure batch by batch; passes if the kernels ran and kept as many tokens as torch."""
    library = load_library(stage.library)
    sizes, batches, rounds = (SMALL, (COMPILED, 1), 5) if stage.rehearse else (BASE, ORDER, ROUNDS)
    stage.save(flash_attention_3=unpack_flash_3(stage), rounds=rounds)
    if not stage.rehearse:
        stage.save(device_before=device_state(), copy_bytes_per_second=copy_bandwidth())

    def profiled(candidates: Candidates) -> dict[str, Any]:
        if not stage.rehearse:
            flush_l2()  # as before every timed call
        return {"kernels": profile_call(candidates["kernel"], stage.device)["kernels"]}

    found: dict[str, Any] = {}
    with torch.inference_mode():
        for index, batch in enumerate(batches):
            found[str(batch)] = {}
            seconds = stage.seconds_left / (4 * (len(batches) - index))
            for op in OPS:
                options: dict[str, Any] = {"sizes": sizes, "compiled": batch == COMPILED, "seconds": seconds}
                found[str(batch)][op] = measure_op(library, op, batch, rounds, also=profiled, **options)
                stage.save(batches=found)
            if not stage.rehearse:
                compact = found[str(batch)]["token_compact"]
                moved = compact_bytes(batch, compact["tokens"] - 2)
                elapsed = compact["timings"]["kernel"]["median_us"] * 1e-6
                compact["share_of_copy_bandwidth"] = moved / elapsed / stage.found["copy_bytes_per_second"]
    if not stage.rehearse:
        stage.save(device_after=device_state())
    counts = [batch["token_compact"] for batch in found.values()]
    return all(entry["tokens"] == entry.get("tokens_of_eager", entry["tokens"]) for entry in counts)
