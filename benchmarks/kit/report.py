"""results.json as one page: predictions, results, and why they differ. Uses the standard library only."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.gpu.architectures import known_gpu
from benchmarks.gpu.markdown import table
from benchmarks.kit.embedded_report import embedded_section
from benchmarks.kit.onnx_report import onnx_runtime_section
from benchmarks.kit.packed_report import packed_section

MICRO = 1e6
NEAR = 1.3  # seen / predicted within this factor of one needs no explanation
BUSY = 0.85  # share of a call in which the GPU works, above which the host does not hold it up
KERNELS = 8  # of a profile


def render(content: Mapping[str, Any], static: Mapping[str, Any] | None) -> str:
    """Render the page.

    Args:
        content: content of results.json, complete or not.
        static: content of benchmarks/gpu/static.json, the predictions for single kernels; None if missing.
    """
    stages = {stage["name"]: stage for stage in content["stages"]}
    found = {name: stage.get("result") or {} for name, stage in stages.items()}
    parts = [_head(content, found.get("probe", {})), _stages(content["stages"])]
    sections = {
        "calls": _calls,
        "parity": _parity,
        "precision": _precision,
        "model": _model,
        "packed": packed_section,
        "onnx_runtime": onnx_runtime_section,
        "embedded": embedded_section,
        "kernel_tests": _tests,
        "graphs": _tests,
        "sanitizer": _tests,
        "recordings": _tests,
    }
    for name, section in sections.items():
        if found.get(name):
            parts.append(section(name, found[name]))
    if found.get("timings"):
        gpu = found.get("probe", {}).get("gpu", {}).get("name", "")
        parts.append(_timings(found["timings"], _predictions(static, gpu)))
    return "\n\n".join(parts) + "\n"


def _number(value: float | None, spec: str) -> str:
    """A number; one that JSON could not hold is said to be none."""
    return "not finite" if value is None else format(value, spec)


def _head(content: Mapping[str, Any], probe: Mapping[str, Any]) -> str:
    kit, gpu, host = content.get("kit") or {}, probe.get("gpu") or {}, probe.get("host") or {}
    rehearsal = content["rehearsal"]
    title = "A rehearsal on a CPU: nothing here was measured on a GPU" if rehearsal else gpu.get("name", "unknown GPU")
    state = gpu.get("state") or {}
    facts = [
        ("began, ended", f"{content['began']}, {content['ended'] or 'not yet'}"),
        (
            "kit",
            f"sources {kit.get('commit', '?')}, compute capability {kit.get('sm')}, packed {kit.get('packed', '?')}",
        ),
        ("predictions for kernels", "of these sources" if kit.get("predictions_current") else "**of other sources**"),
        ("host", f"{host.get('processor', '?')}, {host.get('cpus', '?')} CPUs, Python {host.get('python', '?')}"),
        (
            "packages",
            ", ".join(f"{name} {version}" for name, version in (probe.get("packages") or {}).items() if version),
        ),
    ]
    if gpu:
        sizes = f"{gpu['memory_bytes'] / 2**30:.0f} GiB, L2 {gpu['l2_bytes'] / 1e6:.0f} MB"
        facts.append(("GPU", f"{gpu['name']}, {gpu['capability']}, {gpu['multiprocessors']} SMs, {sizes}"))
        facts.append(("state before", ", ".join(f"{name} {value}" for name, value in state.items())))
    if content.get("cut_short"):
        facts.append(("cut short", content["cut_short"]))
    return f"# {title}\n\n" + table(("", ""), facts)


def _stages(stages: Iterable[Mapping[str, Any]]) -> str:
    rows = [(stage["name"], stage["state"], f"{stage['seconds']:.0f}", stage["why"]) for stage in stages]
    return "## Stages\n\n" + table(("stage", "how it went", "s", "why"), rows)


def _calls(_: str, found: Mapping[str, Any]) -> str:
    return "## One call of each op\n\n" + table(("call", "against the CPU"), found.get("calls", {}).items())


def _parity(_: str, found: Mapping[str, Any]) -> str:
    folders: dict[str, list[Mapping[str, Any]]] = {}
    for case in found.get("cases", []):
        folders.setdefault(case["folder"], []).append(case)
    rows = []
    for name, cases in folders.items():
        failed = [
            f"{case['case']} ({case['runtime']}): {'; '.join(case['mismatches'])}"
            for case in cases
            if case["mismatches"]
        ]
        worst = max(case["worst"] for case in cases)
        rows.append((name, len(cases), f"{worst:.1e}", "; ".join(failed) or "all equal"))
    text = (
        "Recorded cases of the official implementation. Predicted: outputs within 1e-4, every token count and kept set "
        f"equal. TF32: {found.get('tf32')}."
    )
    return f"## Parity in fp32\n\n{text}\n\n" + table(
        ("folder", "runs", "worst difference", "counts and kept sets"), rows
    )


def _precision(_: str, found: Mapping[str, Any]) -> str:
    rows = [
        (
            name,
            f"{entry['decisions_equal']}/{entry['decisions']}",
            _number(entry["worst_logit_difference"], ".1e"),
            f"{entry['layers_equal']}/{entry['layers']}",
            f"{entry['jaccard_mean']:.4f}" if entry["jaccard_mean"] is not None else "",
            f"{entry['flips_explained']}/{entry['flips']}",
            "; ".join(entry["wrong"]),
        )
        for name, entry in found.get("comparisons", {}).items()
    ]
    header = (
        "cases",
        "decisions equal",
        "worst logit",
        "layers equal",
        "Jaccard, mean",
        "flips explained by rounding",
        "wrong",
    )
    return (
        "## 16 bits against 32\n\nThe same models on the kernels. A flip is a token that one keeps and the other does "
        "not, in the first layer of a case at which they part; explained: its margin is within what torch's own scores "
        "move by in that precision.\n\n" + table(header, rows)
    )


def _tests(name: str, found: Mapping[str, Any]) -> str:
    counts = f"{found.get('passed_tests', 0)} passed, {found.get('failed_tests', 0)} failed, "
    lines = [f"{counts}{found.get('skipped_tests', 0)} skipped."]
    lines += [f"- failed: `{test['test']}`: {test['why']}" for test in found.get("failed", [])]
    lines += [f"- skipped: `{test['test']}`: {test['why']}" for test in found.get("skipped", [])]
    return f"## {name.replace('_', ' ').capitalize()}\n\n" + "\n".join(lines)


def _model(_: str, found: Mapping[str, Any]) -> str:
    header = ("candidate", "B", "tau", "GFLOPs", "median ms", "p10-p90", "requests/s", "GFLOPs ratio", "speed-up")
    header += ("efficiency", "launches (expected)", "host waits (expected)", "GPU busy", "peak MB", "predicted ms")
    header += ("seen / predicted, why",)
    rows = []
    for batch, entry in found.get("batches", {}).items():
        for name, candidate in entry["candidates"].items():
            rows.append(_model_row(name, batch, candidate))
        for name, reason in entry["not_run"].items():
            rows.append((name, batch, f"not run: {reason}", *[""] * (len(header) - 3)))
    parts = [
        "## Whole NLVR, base size\n\nEfficiency is the speed-up over the GFLOPs ratio, both against the eager dense "
        "model. The prediction knows rates and launches alone (benchmarks/kit/predict.py).",
        table(header, rows),
    ]
    compiled = []
    for batch, entry in found.get("compiled", {}).items():
        if "not_run" in entry:
            compiled.append(("dense, torch.compile, CUDA graph", batch, f"not run: {entry['not_run']}", "", ""))
            continue
        times = entry["latency_us"]
        graph = next(timing["median_us"] for name, timing in times.items() if "graph" in name)
        for name, timing in times.items():
            spread = f"{timing['p10_us'] / 1e3:.2f}-{timing['p90_us'] / 1e3:.2f}"
            ratio = f"{graph / timing['median_us']:.2f}"
            compiled.append((name, batch, f"{timing['median_us'] / 1e3:.2f}", spread, ratio))
    if compiled:
        parts += [
            "The dense model compiled and captured, with eager candidates in the same rounds:",
            table(("candidate", "B", "median ms", "p10-p90", "graph's time / this"), compiled),
        ]
    for batch, entry in found.get("batches", {}).items():
        if not entry["candidates"]:
            continue
        last = list(entry["candidates"])[-1]
        kernels = entry["candidates"][last]["profile"]["kernels"][:KERNELS]
        rows = [(kernel["name"][:90], kernel["calls"], f"{kernel['us']:.0f}") for kernel in kernels]
        parts += [f"Where the time went: {last}, B = {batch}", table(("kernel", "calls", "us"), rows)]
    return "\n\n".join(parts)


def _model_row(name: str, batch: str, entry: Mapping[str, Any]) -> tuple[object, ...]:
    timing, profile, peak = entry["latency_us"], entry["profile"], entry["peak_bytes"]
    cells: tuple[object, ...] = (
        name,
        batch,
        "" if entry["temperature"] is None else f"{entry['temperature']:.3f}",
        f"{entry['gflops']:.3g}",
        f"{timing['median_us'] / 1e3:.2f}",
        f"{timing['p10_us'] / 1e3:.2f}-{timing['p90_us'] / 1e3:.2f}",
        f"{entry['requests_per_second']:.0f}",
        f"{entry['gflops_ratio']:.2f}",
        f"{entry['speed_up']:.2f}",
        f"{entry['efficiency']:.2f}",
        f"{profile['launches']} ({entry['expected']['launches']})",
        f"{profile['synchronisations']} ({entry['expected']['waits']})",
    )
    if entry["predicted_us"] is None:  # a rehearsal, or a GPU whose rates are not known
        return (*cells, "", "" if peak is None else f"{peak / 1e6:.0f}", "", "")
    busy, ratio = profile["device_us"] / timing["median_us"], timing["median_us"] / entry["predicted_us"]
    reason = "" if 1 / NEAR <= ratio <= NEAR else f": {why(ratio, busy, profile)}"
    return (
        *cells,
        f"{busy:.0%}",
        "" if peak is None else f"{peak / 1e6:.0f}",
        f"{entry['predicted_us'] / 1e3:.2f}",
        f"{ratio:.2f}{reason}",
    )


def why(ratio: float, busy: float, profile: Mapping[str, Any]) -> str:
    """Likely reason for a wrong prediction, according to the profile."""
    if ratio < 1:
        return "products or launches are faster than assumed"
    if busy < BUSY:
        return f"the GPU idles {1 - busy:.0%} of the time: launches and {profile['synchronisations']} waits cost more"
    first = profile["kernels"][0] if profile["kernels"] else {"name": "no kernel", "us": 0.0}
    share = first["us"] / max(profile["device_us"], 1e-9)
    return f"kernels are slower than products alone; {first['name'][:50]} takes {share:.0%}"


def _predictions(static: Mapping[str, Any] | None, gpu: str) -> Mapping[str, Any]:
    """Batch -> op -> prediction of static.json for this GPU; empty if there are none."""
    known = known_gpu(gpu)
    found: Mapping[str, Any] = (static or {}).get("predictions", {}).get(known.name, {}) if known is not None else {}
    return found


def _timings(found: Mapping[str, Any], predictions: Mapping[str, Any]) -> str:
    header = ("candidate", "B", "median us", "p10-p90", "over kernel", "floor us", "predicted us", "seen / predicted")
    parts = [f"## Kernels\n\nFlashAttention-3: {found.get('flash_attention_3')}."]
    bandwidth = found.get("copy_bytes_per_second")
    if bandwidth:
        parts.append(f"A copy moves {bandwidth * 1e-12:.2f} TB/s, read and written.")
    for op in ("aligned_attention", "token_compact"):
        rows: list[tuple[object, ...]] = []
        for batch, entry in found.get("batches", {}).items():
            if op in entry:
                rows += _timing_rows(batch, entry[op], predictions.get(batch, {}).get(op))
        parts += [f"### {op}", table(header, rows)]
        kernels = [
            row
            for batch, entry in found.get("batches", {}).items()
            for row in _kernel_rows(batch, entry.get(op, {}), predictions.get(batch, {}).get(op))
        ]
        if kernels:
            parts += [
                "Of which, once and with the profiler on: where seen and predicted part.",
                table(
                    ("kernel", "B", "seen us", "predicted us", "seen / predicted", "predicted to be bound by"), kernels
                ),
            ]
    return "\n\n".join(parts)


def _kernel_rows(batch: str, entry: Mapping[str, Any], predicted: Mapping[str, Any] | None) -> list[tuple[object, ...]]:
    """Rows with the time of each kernel of a call and its prediction."""
    costs = {cost["kernel"].partition("<")[0]: cost for cost in (predicted or {}).get("kernels", [])}
    rows: list[tuple[object, ...]] = []
    for kernel in entry.get("kernels", []):
        name = next((name for name in costs if re.search(rf"\b{name}\b", kernel["name"])), None)
        if name is None:
            continue
        expected = costs[name]["predicted"] * MICRO
        bounds = ("dram", "l2", "tensor", "exp", "issue", "serial")
        bound = max(bounds, key=lambda term: costs[name][term])
        rows.append((name, batch, f"{kernel['us']:.1f}", f"{expected:.1f}", f"{kernel['us'] / expected:.2f}", bound))
    return rows


def _timing_rows(
    batch: str, entry: Mapping[str, Any], predicted: Mapping[str, float] | None
) -> list[tuple[object, ...]]:
    ours = entry["timings"]["kernel"]["median_us"]
    rows: list[tuple[object, ...]] = []
    for name, timing in entry["timings"].items():
        cells: tuple[object, ...] = (
            name,
            batch,
            f"{timing['median_us']:.1f}",
            f"{timing['p10_us']:.1f}-{timing['p90_us']:.1f}",
            f"{timing['median_us'] / ours:.2f}",
        )
        if name == "kernel" and predicted is not None:
            floor, expected = predicted["floor"] * MICRO, predicted["predicted"] * MICRO
            cells += (f"{floor:.1f}", f"{expected:.1f}", f"{ours / expected:.2f}")
        else:
            cells += ("", "", "")
        rows.append(cells)
    rows += [(name, batch, f"not run: {reason}", "", "", "", "", "") for name, reason in entry["not_run"].items()]
    share = entry.get("share_of_copy_bandwidth")
    if share is not None:
        rows.append(("kernel, share of copy bandwidth", batch, f"{share:.0%}", "", "", "", "", ""))
    return rows
