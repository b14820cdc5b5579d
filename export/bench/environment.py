"""The machine that numbers were measured on: what it is, and what it was doing."""

import contextlib
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pynvml
import torch

from export.errors import OptionError

CPU_INFO = Path("/proc/cpuinfo")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
PERFORMANCE = "performance"  # the governor that keeps clocks up
THROTTLED = {  # bits of NVML's clock event reasons that mean slower than the GPU could be
    "software power cap": pynvml.nvmlClocksThrottleReasonSwPowerCap,
    "hardware slowdown": pynvml.nvmlClocksThrottleReasonHwSlowdown,
    "software thermal slowdown": pynvml.nvmlClocksThrottleReasonSwThermalSlowdown,
    "hardware thermal slowdown": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
    "hardware power brake": pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
}
BUSY = 0.1  # share of the CPUs from which other processes disturb a measurement


class Neighbours:
    """What other processes, and other guests of the host, use of this machine's CPUs from now on."""

    def __init__(self) -> None:
        self._before = self._taken()

    def share(self) -> float:
        """The share of all CPU time since then, 0 to 1."""
        whole, others = (now - before for now, before in zip(self._taken(), self._before, strict=True))
        return min(max(others / whole, 0.0), 1.0) if whole > 0 else 0.0

    @staticmethod
    def _taken() -> tuple[float, float]:
        """Seconds of all CPUs, and of these the ones that were neither idle nor this process's."""
        times, own = psutil.cpu_times(), psutil.Process().cpu_times()
        counted = (times.user, times.nice, times.system, times.irq, times.softirq, times.steal)  # guests are in user
        return sum(counted) + times.idle + times.iowait, sum(counted) - own.user - own.system


@dataclass(frozen=True)
class Machine:
    """What does not change while measuring; `threads` are those of ONNX Runtime and torch."""

    processor: str
    architecture: str
    cores: int
    gpus: list[str]
    driver: str | None
    threads: int
    system: str


@dataclass(frozen=True)
class Activity:
    """What the machine was doing at one moment; None for unknown values."""

    load: float  # mean number of runnable processes in the last minute
    megahertz: float | None  # CPU clock
    governor: str | None  # CPU frequency governor
    gpus: list[dict[str, Any]]  # clocks in MHz, degrees Celsius, and the reasons for throttling


def machine(threads: int | None) -> Machine:
    """This machine, with so many threads at most; None for as many as there are CPUs for this process."""
    with _gpus() as handles:
        names = [pynvml.nvmlDeviceGetName(handle) for handle in handles]
        driver = pynvml.nvmlSystemGetDriverVersion() if handles else None
    usable = len(os.sched_getaffinity(0))
    system = f"{platform.system()} {platform.release()}"
    return Machine(
        _processor(), platform.machine(), os.cpu_count() or 1, names, driver, min(threads or usable, usable), system
    )


def activity() -> Activity:
    """What this machine is doing now."""
    frequency = psutil.cpu_freq()
    governor = None
    with contextlib.suppress(OSError):
        governor = GOVERNOR.read_text().strip()
    with _gpus() as handles:
        gpus = [_gpu_activity(handle) for handle in handles]
    return Activity(round(psutil.getloadavg()[0], 2), frequency.current if frequency else None, governor, gpus)


def clocks(activity: Activity) -> str:
    """The clocks of CPU and GPUs, in words, as far as they are known."""
    found = [] if activity.megahertz is None else [f"CPU {activity.megahertz:.0f} MHz"]
    for gpu in activity.gpus:
        values = [
            ("SM", gpu["sm_megahertz"], "MHz"),
            ("memory", gpu["memory_megahertz"], "MHz"),
            ("", gpu["celsius"], "degrees Celsius"),
        ]
        reasons = gpu["held_back_by"]
        state = "throttling unknown" if reasons is None else f"throttled by {', '.join(reasons) or 'nothing'}"
        known = [f"{name} {value} {unit}".strip() for name, value, unit in values if value is not None]
        found.append(f"GPU {', '.join([*known, state])}")
    return "; ".join(found) or "not known"


def warnings(machine: Machine, before: Activity, after: Activity, neighbours: float) -> list[str]:
    """What makes latencies less reliable, a sentence each; `neighbours` is the share of the CPUs that others used."""
    found = []
    if neighbours > BUSY:
        found.append(f"other processes took {100 * neighbours:.0f} % of the CPUs while this was measured")
    if before.load > machine.cores / 2:
        found.append(f"the machine was busy before measuring: load {before.load:g} on {machine.cores} cores")
    if before.governor not in (None, PERFORMANCE):
        found.append(f"the CPU frequency governor is '{before.governor}', not '{PERFORMANCE}'")
    throttled = sorted({reason for gpu in (*before.gpus, *after.gpus) for reason in gpu["held_back_by"] or ()})
    if throttled:
        found.append(f"a GPU was throttled by: {', '.join(throttled)}")
    return found


@contextlib.contextmanager
def pinned(threads: int | None) -> Iterator[None]:
    """Keep this process and its children on `threads` CPUs, and torch at as many threads; None changes nothing.

    Raises:
        OptionError: there are fewer CPUs.
    """
    if threads is None:
        yield
        return
    cpus = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(cpus):
        raise OptionError(
            f"--threads is {threads}", f"This process may run on {len(cpus)} CPUs.", f"Give 1 to {len(cpus)}."
        )
    before = torch.get_num_threads()
    _keep_on(cpus[:threads])
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        _keep_on(cpus)
        torch.set_num_threads(before)


def _keep_on(cpus: Iterable[int]) -> None:
    """Restrict all threads, torch's too, and those that they start to these CPUs."""
    for thread in psutil.Process().threads():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(thread.id, cpus)


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def _gpus() -> Iterator[list[Any]]:
    """NVML handles; none without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield []
        return
    try:
        yield [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _gpu_activity(handle: Any) -> dict[str, Any]:
    reasons = _query(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    return {
        "sm_megahertz": _query(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
        "memory_megahertz": _query(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_MEM),
        "celsius": _query(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        "held_back_by": None if reasons is None else [name for name, bit in THROTTLED.items() if reasons & bit],
    }


def _query(function: Callable[..., int], *arguments: Any) -> int | None:
    """A value from NVML; None if it is unavailable, as many are on virtual, partitioned and embedded GPUs."""
    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return None
