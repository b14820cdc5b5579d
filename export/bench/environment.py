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
    """What other processes, and other guests of the host, take of this machine's CPUs from now on."""

    def __init__(self) -> None:
        self._before = self._taken()

    def share(self) -> float:
        """Of all CPU time since then, 0 to 1."""
        whole, others = (now - before for now, before in zip(self._taken(), self._before, strict=True))
        return min(max(others / whole, 0.0), 1.0) if whole > 0 else 0.0

    @staticmethod
    def _taken() -> tuple[float, float]:
        """Seconds of all CPUs, and those that were neither idle nor this process's."""
        times, own = psutil.cpu_times(), psutil.Process().cpu_times()
        counted = (times.user, times.nice, times.system, times.irq, times.softirq, times.steal)  # guests are in user
        return sum(counted) + times.idle + times.iowait, sum(counted) - own.user - own.system


@dataclass(frozen=True)
class Machine:
    """What does not change while measuring.

    Attributes:
        gpus: name of each; their driver is in `driver`.
        threads: that ONNX Runtime and torch may use.
    """

    processor: str
    architecture: str
    cores: int
    gpus: list[str]
    driver: str | None
    threads: int
    system: str


@dataclass(frozen=True)
class Activity:
    """What the machine was doing at one moment, outside the timed region.

    Attributes:
        load: mean runnable processes of the last minute.
        megahertz: of the CPU, None where it does not say.
        governor: of the CPU's clocks, None where it cannot be read.
        gpus: clocks in MHz, degrees Celsius, and why each was held back; None for what NVML does not tell.
    """

    load: float
    megahertz: float | None
    governor: str | None
    gpus: list[dict[str, Any]]


def machine(threads: int | None) -> Machine:
    """This machine.

    Args:
        threads: what was asked for; None is as many as this process may run on.
    """
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
    """Of CPU and GPUs, in words; what is not known is left out."""
    found = [] if activity.megahertz is None else [f"CPU {activity.megahertz:.0f} MHz"]
    for gpu in activity.gpus:
        told = [
            ("SM", gpu["sm_megahertz"], "MHz"),
            ("memory", gpu["memory_megahertz"], "MHz"),
            ("", gpu["celsius"], "degrees Celsius"),
        ]
        held = gpu["held_back_by"]
        state = "not known to be held back" if held is None else f"held back by {', '.join(held) or 'nothing'}"
        known = [f"{name} {value} {unit}".strip() for name, value, unit in told if value is not None]
        found.append(f"GPU {', '.join([*known, state])}")
    return "; ".join(found) or "not known"


def warnings(here: Machine, before: Activity, after: Activity, neighbours: float) -> list[str]:
    """What makes the numbers worth less, a sentence each.

    Args:
        here: this machine.
        before: measuring.
        after: measuring.
        neighbours: share of the CPUs that others took meanwhile.
    """
    found = []
    if neighbours > BUSY:
        found.append(f"other processes took {100 * neighbours:.0f} % of the CPUs while this was measured")
    if before.load > here.cores / 2:
        found.append(f"the machine was busy before: load {before.load:g} on {here.cores} cores")
    if before.governor not in (None, PERFORMANCE):
        found.append(f"the CPU's clocks follow the governor '{before.governor}', not '{PERFORMANCE}'")
    held = sorted({reason for gpu in (*before.gpus, *after.gpus) for reason in gpu["held_back_by"] or ()})
    if held:
        found.append(f"a GPU was held back by: {', '.join(held)}")
    return found


@contextlib.contextmanager
def pinned(threads: int | None) -> Iterator[None]:
    """Keep this process and what it starts on `threads` CPUs, and torch at as many threads; None leaves all as it is.

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
    """Let all threads that there are, torch's too, and those that they start run on these CPUs only."""
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
    """Handles of NVML; none without a driver."""
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
    reasons = _told(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    return {
        "sm_megahertz": _told(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
        "memory_megahertz": _told(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_MEM),
        "celsius": _told(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        "held_back_by": None if reasons is None else [name for name, bit in THROTTLED.items() if reasons & bit],
    }


def _told(ask: Callable[..., int], *about: Any) -> int | None:
    """What NVML says; None where it does not know: virtual, partitioned and embedded GPUs tell little."""
    try:
        return ask(*about)
    except pynvml.NVMLError:
        return None
