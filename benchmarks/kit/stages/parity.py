"""Recorded cases of the official implementation, all tasks, fp32: models on the device, their ops on our kernels."""

import time
from typing import Any

import torch

from benchmarks.kit.stage import StageRun
from benchmarks.kit.stages.models import recordings, use_kernels
from tests import golden


def run(stage: StageRun) -> bool:
    """Replay every folder; small models first, so that a full-size one that takes too long costs nothing."""
    use_kernels(stage)
    flags = {
        "convolutions": torch.backends.cudnn.allow_tf32,
        "products": torch.backends.cuda.matmul.allow_tf32,
    }
    stage.save(tf32=flags)
    found: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    for folder in recordings(stage):
        name, begun = f"{folder.parent.name}/{folder.name}", time.monotonic()
        for case, runtime, verdict in golden.check_folder(folder, onnx=False, scratch=folder, device=stage.device):
            entry = {"folder": name, "case": case, "runtime": runtime, "worst": verdict.worst}
            found.append({**entry, "mismatches": verdict.mismatches[:5]})
            stage.save(cases=found)
        seconds[name] = time.monotonic() - begun
        stage.save(seconds=seconds)
    return bool(found) and not any(flags.values()) and not any(entry["mismatches"] for entry in found)
