"""Predicts the latency of a whole model on a GPU from its published rate and from the work of the model.

Two times, the larger of which is the prediction: what the GPU computes and what the host has to say. Assumptions, none
of them measured here: matrix products reach half of the published dense fp16 rate (two FLOP a multiply-add); torch
takes the host 6 us to launch a kernel in eager mode; to wait for a number and start the device anew takes 15 us.
Launches and waits are counted in the code, on a small model with as many layers, and not taken from what is measured.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.architectures import Gpu

SHARE_OF_RATE = 0.5
FLOP_EACH = 2  # of a multiply-add
LAUNCH_SECONDS = 6e-6
WAIT_SECONDS = 15e-6
KERNELS = {"madtp::aligned_attention": 3, "madtp::token_compact": 6}  # launches of our ops
WAITING = "madtp::token_compact"  # which reads back how many tokens stay
NO_KERNEL = ("aten::empty", "aten::new_empty", "aten::detach", "aten::lift_fresh")


@dataclass
class Work:
    """Work of one call besides arithmetic: kernels to launch, numbers for which the host waits."""

    launches: int = 0
    waits: int = 0


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.work = Work()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if not func.is_view and not name.startswith(NO_KERNEL):
            self.work.launches += KERNELS.get(name, 1)
        self.work.waits += name == WAITING
        return func(*args, **(kwargs or {}))


def expected_work(call: Callable[[], object]) -> Work:
    """Count on the CPU the work of `call` on a GPU: one kernel for every operator with a new output."""
    with torch.no_grad(), _Counter() as counter:
        call()
    return counter.work


def predict_model(gpu: Gpu, gflops: float, work: Work) -> float:
    """Predict the seconds of one eager call.

    Args:
        gpu: the GPU with its published rate.
        gflops: GFLOPs of the whole batch, a multiply-add counting one.
        work: work of the call.
    """
    rate = SHARE_OF_RATE * gpu.tensor / FLOP_EACH
    return max(gflops * 1e9 / rate, work.launches * LAUNCH_SECONDS) + work.waits * WAIT_SECONDS
