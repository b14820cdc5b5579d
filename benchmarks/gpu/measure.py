"""Timing and memory on a CUDA device."""

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
    """Microseconds a call: median, 10th and 90th percentile of `calls` timed calls."""

    median_us: float
    p10_us: float
    p90_us: float
    calls: int


def summarize(microseconds: list[float]) -> Timing:
    """Median and percentiles."""
    p10, median, p90 = np.percentile(microseconds, [10, 50, 90])
    return Timing(float(median), float(p10), float(p90), len(microseconds))


def interleave(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time every candidate once a round between two CUDA events, L2 flushed before each; the order turns each round."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for index in range(WARMUP_ROUNDS + rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flush.zero_()
            begin.record()
            candidates[name]()
            end.record()
            end.synchronize()
            if index >= WARMUP_ROUNDS:
                times[name].append(begin.elapsed_time(end) * 1e3)
    return {name: summarize(values) for name, values in times.items()}


def copy_bandwidth(size: int = COPY_BYTES, rounds: int = 30) -> float:
    """Bytes a second, read and written, of a device-to-device copy of `size` bytes; the median."""
    source = torch.zeros(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    median = interleave({"copy": lambda: target.copy_(source)}, rounds)["copy"].median_us
    return 2 * size / (median * 1e-6)


def peak_bytes(call: Callable[[], object]) -> int:
    """Most device memory that `call` holds beyond what is held before it: outputs, workspace and temporaries."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = call()
    torch.cuda.synchronize()
    del kept
    return torch.cuda.max_memory_allocated() - before


def device_state(index: int = 0) -> dict[str, Any]:
    """Name, driver, clocks, power, temperature and throttling of the GPU, as far as the driver tells."""
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
