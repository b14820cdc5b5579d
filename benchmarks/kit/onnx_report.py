"""What the results' page says of ONNX Runtime. Uses the standard library only."""

from collections.abc import Mapping
from typing import Any

from benchmarks.gpu.markdown import table
from benchmarks.kit.packed_report import goals_table, latency


def _worst(value: float | None) -> str:
    """A difference; one that JSON could not hold is said to be none."""
    return "not finite" if value is None else f"{value:.1e}"


def onnx_runtime_section(_: str, found: Mapping[str, Any]) -> str:
    """Recorded cases, base size in float32, and fp16 beside torch."""
    ran = ", ".join(f"{op} ({count})" for op, count in found.get("ran", {}).items()) or "nothing"
    cases = found.get("cases", [])
    failed = [f"{case['case']}: {'; '.join(case['mismatches'])}" for case in cases if case["mismatches"]]
    parts = [
        f"## ONNX Runtime\n\n{found.get('onnxruntime', '?')}, {found.get('provider', '?')}. Ran there: {ran}.",
        f"Recorded cases in fp32, TF32 off: {len(cases)}, worst difference "
        f"{_worst(max((case['worst'] or 0.0 for case in cases), default=0.0))}; {'; '.join(failed) or 'all equal'}.",
    ]
    base = [
        (f"{entry['temperature']:g}", "equal" if entry["same_counts"] else "**differ**", _worst(entry["worst"]))
        for entry in found.get("base", [])
    ]
    if base:
        header = ("temperature", "token counts", "worst difference of logits")
        parts += ["NLVR of base size in fp32, next to torch on our kernels:", table(header, base)]
    rows, answers = [], []
    for batch, entry in found.get("batches", {}).items():
        first = next(iter(entry["latency_us"].values()))["median_us"]
        for name, timing in entry["latency_us"].items():
            spread = f"{timing['p10_us'] / 1e3:.2f}-{timing['p90_us'] / 1e3:.2f}"
            rows.append((name, batch, f"{timing['median_us'] / 1e3:.2f}", spread, f"{first / timing['median_us']:.2f}"))
        profile = entry["profile"]
        waits = f"{profile['launches']} launches, {profile['synchronisations']} host waits"
        rows.append((f"{profile['candidate']}: one call profiled", batch, waits, "", ""))
        for name, entry_of in entry["answers"].items():
            total = entry_of["requests"]
            dense, torchs = entry_of["as_dense_torch"], entry_of["as_torch_on_our_kernels"]
            worst = entry_of["worst_logit_difference"]
            answers.append((name, batch, f"{dense}/{total}", f"{torchs}/{total}", _worst(worst)))
    if rows:
        header = ("fp16, candidate", "B", "median ms", "p10-p90", "speed-up over dense torch")
        parts += [table(header, rows), "Answers of the fp16 graph, weights generated and not trained:"]
        header = ("share of GFLOPs", "B", "as dense torch", "as torch on our kernels", "worst logit to the latter")
        parts.append(table(header, answers))
    if found.get("packed"):
        parts += _packed(found["packed"])
    return "\n\n".join(parts)


def _packed(found: Mapping[str, Any]) -> list[str]:
    """The packed layout: goals, answers, latency."""
    parts = ["### Packed, every batch size in a CUDA graph"]
    if "exact" in found:
        exact = found["exact"]
        same = f"counts of {exact['same_counts']} of {exact['requests']} requests equal"
        parts.append(
            f"In fp32 on changing inputs, next to torch with as many rows as are needed: {same}, worst logit "
            f"{_worst(exact['worst'])}, {exact['overflows']} overflows."
        )
    if found.get("refused"):
        parts.append(f"**Not captured**, run node by node: {found['refused']}")
    if found.get("not_run"):
        parts.append(f"Not run: {found['not_run']}.")
    batches = found.get("batches", {})
    if not batches:
        return parts
    rows = []
    for batch, entry in batches.items():
        total = sum(one["requests"] for one in entry["replays"])
        counts, answers = (sum(one[key] for one in entry["replays"]) for key in ("same_counts", "same_answers"))
        forced, waits = entry.get("forced_overflow"), next(iter(entry["waits"].values()))
        noticed = f"{forced['noticed']}/{forced['calls']}" if forced else ""
        launches = waits.get("graph_launches", 0)
        row = (batch, f"{counts}/{total}", f"{answers}/{total}", entry["overflows"], noticed, launches)
        rows.append((*row, waits["synchronisations"]))
    header = ("B", "counts as torch's", "answers as torch's", "overflows", "noticed when forced", "graph launches")
    return [
        *parts,
        goals_table(found.get("goals", [])),
        *latency(batches, {}),
        "fp16 next to torch on our kernels, whose products round differently:",
        table((*header, "host waits"), rows),
    ]
