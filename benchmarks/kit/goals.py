"""What the packed layout is to reach on a GPU, next to what was seen. Uses the standard library only."""

from collections.abc import Iterable, Mapping
from typing import Any

FASTER, FASTER_BATCH = 3.5, "32"  # than the fastest dense candidate
NO_SLOWER_BATCH = "1"
FEWER = 0.8  # of the dense GFLOPs saved


def goals(found: Mapping[str, Any], ours: str = "packed", waits: int = 0) -> list[dict[str, Any]]:
    """Goals that the results of a stage say something about.

    Args:
        found: of a stage: `batches` and perhaps `compiled`, each by batch with `latency_us` by candidate.
        ours: the candidate that has to be faster than all whose names say that they are dense.
        waits: host synchronisations that a call of it may have.

    Returns:
        for each: goal, seen (a number), met, and by how much of the spread (`spread`, the ratio at the unfavourable
        ends of the 10th to 90th percentile).
    """
    reached = []
    for batch, least in ((FASTER_BATCH, FASTER), (NO_SLOWER_BATCH, 1.0)):
        rounds = [found.get(kind, {}).get(batch, {}).get("latency_us") for kind in ("batches", "compiled")]
        ratios = [ratio for timings in rounds if timings and ours in timings for ratio in _ratios(timings, ours)]
        if ratios:
            seen, spread, against = min(ratios)
            goal = f"{least:g} times as fast as every dense candidate, batch {batch}"
            reached.append({"goal": goal, "seen": seen, "spread": spread, "against": against, "met": seen >= least})
    for batch, entry in found.get("batches", {}).items():
        if batch == FASTER_BATCH and "gflops" in entry:
            saved = 1 - entry["gflops"]["kept"] / entry["gflops"]["dense"]
            reached.append(
                {"goal": f"{FEWER:.0%} fewer GFLOPs, batch {batch}", "seen": saved, "met": saved >= FEWER - 0.005}
            )
    seen = [one["synchronisations"] for entry in found.get("batches", {}).values() for one in _waits(entry)]
    if seen:
        goal = f"no host synchronisation{' but at the end' if waits else ''}"
        reached.append({"goal": goal, "seen": max(seen), "met": max(seen) <= waits})
    return reached


def _waits(entry: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    found: Mapping[str, Any] = entry.get("waits", {})
    return found.values()


def _ratios(timings: Mapping[str, Any], ours: str) -> Iterable[tuple[float, float, str]]:
    """For every dense candidate: its time over ours, that of the spread's near ends, and its name."""
    mine = timings[ours]
    for name, other in timings.items():
        if "dense" in name:
            yield other["median_us"] / mine["median_us"], other["p10_us"] / mine["p90_us"], name
