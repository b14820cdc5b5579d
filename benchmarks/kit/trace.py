"""What one call does according to torch's profiler: launches, host synchronizations, and the time of each kernel."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

RANGE = "madtp: the profiled call"
# Calls of CUDA's runtime that make the host wait. (torch reads a number back by a copy and cudaStreamSynchronize.)
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
GRAPH_LAUNCH = "cudaGraphLaunch"
READ_BACK = "aten::_local_scalar_dense"  # a number that Python asked a tensor for
LISTED = 15


def profile_call(call: Callable[[], object], device: str) -> dict[str, Any]:
    """Profile one call.

    Returns:
        launches (kernels; operators on a CPU), graph_launches (a replayed CUDA graph is one), synchronisations (of the
        host, by the runtime's own calls; numbers read back on a CPU), read_back, device_us (sum over kernels), kernels
        (name, calls, microseconds; longest first).
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        with record_function(RANGE):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
    events = profiler.events() or []
    region = next(event for event in events if event.name == RANGE and event.device_type == DeviceType.CPU)
    first, last = region.time_range.start, region.time_range.end
    inside = Counter(
        event.name
        for event in events
        if event.device_type == DeviceType.CPU and first <= event.time_range.start <= last
    )
    read_back = inside[READ_BACK]
    kernels: dict[str, list[float]] = {}
    for event in events:
        on_device = event.device_type == DeviceType.CUDA if device == "cuda" else event.device_type == DeviceType.CPU
        if not on_device or event.name == RANGE:
            continue
        elapsed = event.time_range.elapsed_us() if device == "cuda" else event.self_cpu_time_total
        kernels.setdefault(event.name, []).append(elapsed)
    ranked = sorted(kernels.items(), key=lambda item: -sum(item[1]))
    on_gpu = device == "cuda"
    return {
        "launches": sum(inside[name] for name in LAUNCHES) if on_gpu else sum(len(times) for times in kernels.values()),
        "graph_launches": inside[GRAPH_LAUNCH],
        "synchronisations": sum(inside[name] for name in WAITS) if on_gpu else read_back,
        "waits": {name: inside[name] for name in WAITS if inside[name]},
        "read_back": read_back,
        "device_us": sum(sum(times) for times in kernels.values()),
        "kernels": [{"name": name[:160], "calls": len(times), "us": sum(times)} for name, times in ranked[:LISTED]],
    }
