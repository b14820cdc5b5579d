"""The stages of the kit, in the order in which they run: the most valuable first. Uses the standard library only."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One stage: `benchmarks.kit.stages.<name>`, a process of its own.

    Attributes:
        name: name of the module and of its result files.
        seconds: maximum duration, less if the kit's own time runs out before. The durations add up to the kit's time.
        shows: what it shows, in words.
    """

    name: str
    seconds: float
    shows: str


PROBE = Stage("probe", 30, "machine, driver, clocks, versions, the libraries' symbols")
STAGES = (
    PROBE,
    Stage("calls", 20, "one call of each op and type against the CPU"),
    Stage("parity", 60, "recorded cases of all tasks in fp32: outputs, token counts, kept sets"),
    Stage("model", 95, "whole NLVR: dense and pruned, latency, throughput, synchronisations, memory, profile"),
    Stage("packed", 60, "packed NLVR in one CUDA graph: answers, overflows, host waits, latency beside dense"),
    Stage("precision", 30, "fp16 and bf16: agreement, kept tokens, flips and their margins"),
    Stage("onnx_runtime", 130, "whole NLVR in ONNX Runtime on our kernels: recorded cases, base size, fp16 latency"),
    Stage("embedded", 30, "programs in C++ on ONNX Runtime: answers equal to Python's, requests of several threads"),
    Stage("kernel_tests", 35, "the kernel tests that run on the host elsewhere"),
    Stage("graphs", 20, "CUDA-graph capture of each op"),
    Stage("timings", 35, "both ops beside eager torch, torch.compile, SDPA, FlashAttention-3, a copy"),
    Stage("sanitizer", 25, "compute-sanitizer: memcheck and racecheck"),
    Stage("recordings", 15, "the kernels on every layer of the recorded cases"),
)
MINUTES = 9.75  # of all stages
REHEARSAL_MINUTES = 20.0
REHEARSAL_FACTOR = 4.0  # a stage may take so much longer where its kernels are emulated
