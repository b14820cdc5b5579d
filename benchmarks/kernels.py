"""The kernels of both ops on a CUDA GPU, against eager torch, torch.compile and scaled_dot_product_attention.

    python -m benchmarks.kernels [--json FILE]        (./build.sh gpu-bench builds the kernels first)

Base size, fp16, batches of 1, 8, 32 and 128. Each candidate is timed between two CUDA events, L2 flushed before, in
interleaved rounds after a warm-up: median and 10th to 90th percentile. The GPU's clocks are read before and after,
never within. What is seen is held against the prediction of benchmarks/gpu/static.json, and against the project's
targets; a missed target is printed, not an error. Writes benchmarks/gpu/results-<gpu>-<date>.json and .md.
"""

import json
import re
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from benchmarks.gpu.architectures import known_gpu
from benchmarks.gpu.calls import require_device
from benchmarks.gpu.candidates import attention_candidates, compact_candidates, memory_against_length
from benchmarks.gpu.compile import source_hash
from benchmarks.gpu.floor import BATCHES, compact_bytes
from benchmarks.gpu.measure import copy_bandwidth, device_state, interleave
from benchmarks.gpu.static_markdown import table
from benchmarks.static_report import COMMAND, FOLDER, REPORT, rounded
from madtp.errors import MadtpError
from madtp.ops.library import load_library

MOST_OVER_SDPA = 1.6  # targets
LEAST_OVER_EAGER = 4.0
LEAST_OF_COPY = 0.6
LENGTHS = (145, 289, 577, 1153)  # of the memory measurement: each about twice the one before
MOST_GROWTH = 2.4  # of memory where the length doubles; quadratic would be 4
MEMORY_BATCH = 8
ROUNDS = 50
WRONG_MACHINE = 2  # exit status


def measure_batch(library: Any, batch: int, rounds: int) -> dict[str, Any]:
    """Both ops at one batch: timings, what was refused, facts on the results."""
    result: dict[str, Any] = {}
    for op, make in (("aligned_attention", attention_candidates), ("token_compact", compact_candidates)):
        candidates, refused, facts = make(library, batch)
        result[op] = {
            "timings": {name: asdict(timing) for name, timing in interleave(candidates, rounds).items()},
            "not_run": refused,
            **facts,
        }
        del candidates
        torch.cuda.empty_cache()
    return result


def add_predictions(results: dict[str, Any]) -> None:
    """Put floor and prediction of static.json (in microseconds) beside what was seen, where this GPU is among them."""
    gpu = known_gpu(results["device_before"]["name"])
    static = json.loads(REPORT.read_text()) if REPORT.is_file() else None
    if gpu is None or static is None:
        results["prediction"] = f"none: static.json knows no {results['device_before']['name']}"
        return
    fresh = static["source"] == source_hash()
    results["prediction"] = f"of static.json for {gpu.name}" + ("" if fresh else f"; **stale**: run {COMMAND}")
    for batch, ops in static["predictions"][gpu.name].items():
        for op, predicted in ops.items():
            if batch in results["batches"]:
                entry = {"floor": predicted["floor"] * 1e6, "predicted": predicted["predicted"] * 1e6}
                results["batches"][batch][op]["prediction_us"] = entry


def verdicts(results: dict[str, Any]) -> list[str]:
    """A line for each target: met, missed, or why it is open."""
    lines = []

    def judge(target: str, met: bool | None, seen: str) -> None:
        state = "open" if met is None else "met" if met else "missed"
        lines.append(f"{state}: {target}; seen {seen}")

    timings = results["batches"]["32"]["aligned_attention"]["timings"]
    ours = timings["kernel"]["median_us"]
    for target, other, over in (
        (f"AlignedAttention at most {MOST_OVER_SDPA} x SDPA at B = 32", "SDPA", True),
        (f"AlignedAttention at least {LEAST_OVER_EAGER:g} x faster than eager torch at B = 32", "eager", False),
    ):
        if other not in timings:
            judge(target, None, f"nothing: {other} did not run")
            continue
        theirs = timings[other]["median_us"]
        ratio = ours / theirs if over else theirs / ours
        judge(target, ratio <= MOST_OVER_SDPA if over else ratio >= LEAST_OVER_EAGER, f"{ratio:.2f} x")
    rows = results["memory"]
    growth = max(after["kernel"] / before["kernel"] for before, after in pairwise(rows))
    judge("peak memory of AlignedAttention linear in N", growth <= MOST_GROWTH, f"{growth:.2f} x where N doubles")
    compact = results["batches"]["128"]["token_compact"]
    moved = compact_bytes(128, compact["tokens"] - 2)
    share = moved / (compact["timings"]["kernel"]["median_us"] * 1e-6) / results["copy_bytes_per_second"]
    judge(
        f"TokenCompact at least {LEAST_OF_COPY * 100:.0f} % of measured copy bandwidth at B = 128",
        share >= LEAST_OF_COPY,
        f"{share * 100:.0f} %",
    )
    return lines


def timing_table(results: dict[str, Any], op: str) -> str:
    """Seen beside predicted, and every candidate relative to the kernel."""
    rows = []
    for batch, ops in results["batches"].items():
        entry = ops[op]
        ours = entry["timings"]["kernel"]["median_us"]
        for name, timing in entry["timings"].items():
            cells = [name, batch, f"{timing['median_us']:.1f}", f"{timing['p10_us']:.1f}-{timing['p90_us']:.1f}"]
            cells.append(f"{timing['median_us'] / ours:.2f}")
            prediction = entry.get("prediction_us") if name == "kernel" else None
            if prediction is None:
                cells += ["", "", ""]
            else:
                seen = f"{ours / prediction['predicted']:.2f}"
                cells += [f"{prediction['floor']:.1f}", f"{prediction['predicted']:.1f}", seen]
            rows.append(cells)
        rows += [[name, batch, f"not run: {why}", *[""] * 5] for name, why in entry["not_run"].items()]
    header = ("candidate", "B", "median us", "p10-p90", "over kernel", "floor us", "predicted us", "seen / predicted")
    return table(header, rows)


def render(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    device = results["device_before"]
    memory = [(row["length"], f"{row['kernel'] / 1e6:.1f}", f"{row['eager'] / 1e6:.1f}") for row in results["memory"]]
    parts = [
        f"# Kernels on {device['name']}, {results['date']}",
        f"Sources {results['source'][:12]}, torch {results['torch']}, rounds {results['rounds']}; prediction"
        f" {results['prediction']}. Copy bandwidth {results['copy_bytes_per_second'] * 1e-12:.2f} TB/s (read and"
        " written).",
        "\n".join(f"- {line}" for line in results["verdicts"]),
        "## AlignedAttention",
        timing_table(results, "aligned_attention"),
        "## TokenCompact",
        timing_table(results, "token_compact"),
        f"## Peak memory of AlignedAttention at B = {MEMORY_BATCH}: outputs, workspace, temporaries",
        table(("tokens", "kernel MB", "eager MB"), memory),
        "## Device",
        table(("reading", "before", "after"), [(k, v, results["device_after"].get(k)) for k, v in device.items()]),
    ]
    return "\n\n".join(parts) + "\n"


def measure(console: Console, rounds: int) -> dict[str, Any]:
    """Everything of the results file.

    Raises:
        DeviceError: there is no GPU.
        KernelError: there is no library, or the kernels refuse to run.
    """
    require_device()
    library = load_library()
    results: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": source_hash(),
        "torch": torch.__version__,
        "rounds": rounds,
        "device_before": device_state(),
        "copy_bytes_per_second": copy_bandwidth(),
        "batches": {},
    }
    with torch.inference_mode():
        for batch in BATCHES:
            console.print(f"batch {batch}")
            results["batches"][str(batch)] = measure_batch(library, batch, rounds)
        results["memory"] = memory_against_length(library, MEMORY_BATCH, LENGTHS)
    results["device_after"] = device_state()
    add_predictions(results)
    results["verdicts"] = verdicts(results)
    return rounded(results)


@click.command()
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the results there too.")
@click.option("--rounds", default=ROUNDS, show_default=True, type=click.IntRange(min=5), help="Timed calls of each.")
def main(target: Path | None, rounds: int) -> None:
    """Time the kernels on this machine's GPU, beside torch."""
    console = Console(stderr=True)
    try:
        results = measure(console, rounds)
    except MadtpError as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(WRONG_MACHINE)
    gpu = re.sub(r"[^a-z0-9]+", "-", results["device_before"]["name"].lower()).strip("-")
    name = f"results-{gpu}-{results['date'][:10]}"
    content = json.dumps(results, indent=1) + "\n"
    for path in (FOLDER / f"{name}.json", target):
        if path is not None:
            path.write_text(content)
    (FOLDER / f"{name}.md").write_text(render(results))
    Console().print(render(results), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
