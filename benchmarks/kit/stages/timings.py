"""Both ops at base size, fp16, beside what torch offers; TokenCompact against the bandwidth of a copy."""

from dataclasses import asdict
from typing import Any

import torch

from benchmarks.gpu.candidates import BASE, Sizes, attention_candidates, compact_candidates
from benchmarks.gpu.floor import compact_bytes
from benchmarks.gpu.measure import copy_bandwidth, device_state, flush_l2, interleave
from benchmarks.kit.flash import unpack_flash_3
from benchmarks.kit.stage import Stage
from benchmarks.kit.trace import profile_call
from madtp.ops.library import load_library

SMALL = Sizes(length=40, width=32, heads=1, alignments=8, device="cpu")
ORDER = (32, 128, 1, 8)  # of batches: those that targets are set for come first
COMPILED = 32  # the batch at which torch.compile takes part: it takes its time
ROUNDS = 30


def run(stage: Stage) -> bool:
    """Batch by batch; passes where the kernels ran and kept as many tokens as torch."""
    library = load_library(stage.library)
    sizes, batches, rounds = (SMALL, (COMPILED, 1), 5) if stage.rehearse else (BASE, ORDER, ROUNDS)
    stage.save(flash_attention_3=unpack_flash_3(stage), rounds=rounds)
    if not stage.rehearse:
        stage.save(device_before=device_state(), copy_bytes_per_second=copy_bandwidth())
    found: dict[str, Any] = {}
    with torch.inference_mode():
        for index, batch in enumerate(batches):
            found[str(batch)] = {}
            share = stage.seconds_left / (2 * (len(batches) - index))
            for op, make in (("aligned_attention", attention_candidates), ("token_compact", compact_candidates)):
                candidates, refused, facts = make(library, batch, sizes, compiled=batch == COMPILED)
                timings = interleave(candidates, rounds, device=stage.device, seconds=share / 2)
                entry = {name: asdict(timing) for name, timing in timings.items()}
                if not stage.rehearse:
                    flush_l2()  # as before every timed call
                profile = profile_call(candidates["kernel"], stage.device)
                found[str(batch)][op] = {"timings": entry, "not_run": refused, "kernels": profile["kernels"], **facts}
                stage.save(batches=found)
                del candidates
            if not stage.rehearse:
                compact = found[str(batch)]["token_compact"]
                moved = compact_bytes(batch, compact["tokens"] - 2)
                seconds = compact["timings"]["kernel"]["median_us"] * 1e-6
                compact["share_of_copy_bandwidth"] = moved / seconds / stage.found["copy_bytes_per_second"]
                torch.cuda.empty_cache()
    if not stage.rehearse:
        stage.save(device_after=device_state())
    counts = [batch["token_compact"] for batch in found.values()]
    return all(entry["tokens"] == entry.get("tokens_of_eager", entry["tokens"]) for entry in counts)
