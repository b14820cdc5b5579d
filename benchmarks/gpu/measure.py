"""Timing and memory on a CUDA device."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

FLUSH_BYTES = 512_000_000  # several times any L2; filling it also keeps the GPU busy while the host enqueues
WARMUP_ROUNDS = 3
COPY_BYTES = 1 << 30


@dataclass(frozen=True)
class Timing:
    """Microseconds per call: median, 10th and 90th percentile of `calls` timed calls."""

    median_us: float
    p10_us: float
    p90_us: float
    calls: int


def summarize(microseconds: list[float]) -> Timing:
    """Median and percentiles."""
    p10, median, p90 = np.percentile(microseconds, [10, 50, 90])
    return Timing(float(median), float(p10), float(p90), len(microseconds))


def interleave(
    candidates: Mapping[str, Callable[[], object]], rounds: int, *, device: str = "cuda", seconds: float = float("inf")
) -> dict[str, Timing]:
    """Time every candidate once per round, L2 flushed before each; the order rotates each round.

    Args:
        candidates: calls by name.
        rounds: how often each is timed; at least half as often once `seconds` are over.
        device: "cuda" times between two events, "cpu" (a rehearsal) by the clock.
        seconds: time after which the rounds end early.
    """
    time_call = _time_on_cpu if device == "cpu" else _event_timer()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    names, begun = list(candidates), time.monotonic()
    for index in range(WARMUP_ROUNDS + rounds):
        if index >= WARMUP_ROUNDS + rounds // 2 and time.monotonic() - begun > seconds:
            break
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            elapsed = time_call(candidates[name])
            if index >= WARMUP_ROUNDS:
                times[name].append(elapsed)
    return {name: summarize(values) for name, values in times.items()}


def _time_on_cpu(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e6


def flush_l2() -> None:
    """Evict everything from the GPU's L2 cache."""
    torch.zeros(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()


def _event_timer() -> Callable[[Callable[[], object]], float]:
    """Microseconds of a call between two CUDA events, L2 flushed before the first."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def time_call(call: Callable[[], object]) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e3

    return time_call


def copy_bandwidth(size: int = COPY_BYTES, rounds: int = 30, device: str = "cuda") -> float:
    """Median bytes per second, read and written, of a copy of `size` bytes on the device."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    median = interleave({"copy": lambda: target.copy_(source)}, rounds, device=device)["copy"].median_us
    return 2 * size / (median * 1e-6)


def peak_bytes(call: Callable[[], object]) -> int:
    """Peak device memory that `call` adds: outputs, workspace and temporaries."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = call()
    torch.cuda.synchronize()
    del kept
    return torch.cuda.max_memory_allocated() - before


def device_state(index: int = 0) -> dict[str, Any]:
    """Name, driver, clocks, power, temperature and throttling of the GPU, as far as the driver reports them."""
    import pynvml

    state: dict[str, Any] = {"name": torch.cuda.get_device_name(index), "cuda": torch.version.cuda}
    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        state["driver"] = pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError as error:
        return {**state, "nvml": f"not to be had: {error}"}
    readings: dict[str, Callable[[], Any]] = {
        "sm_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "most_sm_mhz": lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "memory_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
        "celsius": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        "watts": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "throttle_reasons": lambda: hex(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        "other_processes": lambda: max(len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)) - 1, 0),
    }
    for name, read in readings.items():
        try:
            state[name] = read()
        except pynvml.NVMLError as error:
            state[name] = str(error)
    pynvml.nvmlShutdown()
    return state
