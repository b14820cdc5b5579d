"""What the results' page says of the packed layout. Uses the standard library only."""

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.gpu.markdown import table

KERNELS = 8  # of a profile
PROFILED = "32"  # batch whose kernels are listed, or the first


def packed_section(_: str, found: Mapping[str, Any]) -> str:
    """Goals, latency beside dense, answers of replays, and where the time went."""
    parts = [
        "## Packed NLVR in one CUDA graph, base size, fp16\n\nEvery candidate but the eager one is a replayed graph. "
        "Rooms of the layers were chosen on these requests.",
        goals_table(found.get("goals", [])),
    ]
    exact = found.get("exact")
    if exact:
        verdict = "equal" if exact["passed"] else "**differ**"
        same = f"counts of {exact['same_counts']} of {exact['requests']} requests equal"
        parts.append(
            f"In fp32, replays on changing inputs next to torch's reference for every request alone: {same}, worst "
            f"logit {_worst(exact['worst'])}: {verdict}."
        )
    batches = found.get("batches", {})
    if batches:
        parts += [*latency(batches, found.get("compiled", {})), *_answers(batches)]
    return "\n\n".join(parts)


def goals_table(goals: Iterable[Mapping[str, Any]]) -> str:
    """What was to be reached, and the verdict; a rehearsal has times of a CPU."""
    rows = []
    for goal in goals:
        spread = f"{goal['spread']:.2f}" if "spread" in goal else ""
        verdict = "met" if goal["met"] else "**missed**"
        rows.append((goal["goal"], f"{goal['seen']:.3g}", spread, goal.get("against", ""), verdict))
    header = ("goal", "seen", "at the spread's near ends", "closest candidate", "verdict")
    return table(header, rows) if rows else "No goal was measured."


def latency(batches: Mapping[str, Any], compiled: Mapping[str, Any]) -> list[str]:
    """Tables of latencies, candidates of one table in the same rounds."""
    header = ("candidate", "B", "median ms", "p10-p90", "requests/s", "dense graph's time / this")
    first, second = [], []
    for rows, kind in ((first, batches), (second, compiled)):
        for batch, entry in kind.items():
            if "latency_us" not in entry:
                rows.append((f"not run: {entry['not_run']}", batch, "", "", "", ""))
                continue
            times = entry["latency_us"]
            dense = next(timing["median_us"] for name, timing in times.items() if name == "dense, SDPA")
            rows += [(name, batch, *_cells(timing, int(batch), dense)) for name, timing in times.items()]
    parts = [table(header, first)]
    if second:
        parts += ["With the dense model compiled, in rounds of their own:", table(header, second)]
    return parts


def _cells(timing: Mapping[str, float], batch: int, dense_us: float) -> tuple[str, ...]:
    median = timing["median_us"]
    spread = f"{timing['p10_us'] / 1e3:.2f}-{timing['p90_us'] / 1e3:.2f}"
    return f"{median / 1e3:.2f}", spread, f"{batch / median * 1e6:.0f}", f"{dense_us / median:.2f}"


def _answers(batches: Mapping[str, Any]) -> list[str]:
    header = ("B", "GFLOPs dense", "of tokens kept", "executed", "as uncaptured", "worst logit", "counts as exact")
    header += ("answers as exact", "overflows while timed", "noticed when forced", "graph launches", "host waits")
    rows = []
    for batch, entry in batches.items():
        gflops, forced = entry["gflops"], entry["forced_overflow"]
        captured, exact = ([replay[kind] for replay in entry["replays"]] for kind in ("uncaptured", "exact"))
        total = sum(one["requests"] for one in exact)
        then = "right" if forced["answered_by_lossless"] else "**wrong**"
        packed = entry["waits"]["packed"]
        refused = next((one["refused"] for one in entry["waits"].values() if one["refused"]), "")
        rows.append(
            (
                batch,
                *(f"{gflops[name]:.4g}" for name in ("dense", "kept", "executed")),
                f"{sum(one['same_counts'] for one in captured)}/{total}",
                _worst(max(one["worst"] or 0.0 for one in captured)),
                f"{sum(one['same_counts'] for one in exact)}/{total}",
                f"{sum(one['same_answers'] for one in exact)}/{total}",
                sum(entry["overflows_while_timed"].values()),
                f"{forced['noticed']}/{forced['calls']}, then {then}",
                packed.get("graph_launches", 0),
                f"{packed['synchronisations']}{': ' if refused else ''}{refused}",
            )
        )
    chosen = PROFILED if PROFILED in batches else next(iter(batches))
    kernels = batches[chosen]["waits"]["packed"]["kernels"][:KERNELS]
    times = [(kernel["name"][:90], kernel["calls"], f"{kernel['us']:.0f}") for kernel in kernels]
    return [
        "Replays on three batches of different requests and lengths, next to the same model uncaptured, and to the "
        "exact one, whose products have other sizes and round differently:",
        table(header, rows),
        f"Where the time of packed went, B = {chosen}:",
        table(("kernel", "calls", "us"), times),
    ]


def _worst(value: float | None) -> str:
    """A difference; one that JSON could not hold is said to be none."""
    return "not finite" if value is None else f"{value:.1e}"
