"""Timings of the kernels on a CUDA GPU: measuring, judging and writing them, without a command line.

`python -m benchmarks.kernels` is the command line.
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.architectures import known_gpu
from benchmarks.gpu.calls import require_device
from benchmarks.gpu.candidates import (
    BASE,
    Candidates,
    Sizes,
    attention_candidates,
    compact_candidates,
    memory_against_length,
)
from benchmarks.gpu.compile import source_hash
from benchmarks.gpu.floor import BATCHES, compact_bytes
from benchmarks.gpu.markdown import table
from benchmarks.gpu.measure import copy_bandwidth, device_state, interleave
from madtp.files.outputs import json_kind, marked_kind, write_output
from madtp.files.staging import write_errors
from madtp.ops.library import load_library

FOLDER = Path(__file__).resolve().parent
REPORT = FOLDER / "static.json"  # what `python -m benchmarks.static_report` writes
STATIC_COMMAND = "python -m benchmarks.static_report"

MOST_OVER_SDPA = 1.6  # targets
LEAST_OVER_EAGER = 4.0
LEAST_OF_COPY = 0.6
LENGTHS = (145, 289, 577, 1153)  # of the memory measurement: each about twice the one before
MOST_GROWTH = 2.4  # of memory where the length doubles; quadratic would be 4
MEMORY_BATCH = 8
ROUNDS = 50
RESULTS = json_kind("a result of this benchmark", "date", "source", "device_before")
PAGE = marked_kind("a page of this benchmark's results", "# Kernels on ")


OPS: dict[str, Callable[..., tuple[Candidates, dict[str, str], dict[str, Any]]]] = {
    "aligned_attention": attention_candidates,
    "token_compact": compact_candidates,
}


def measure_op(
    library: Any,
    op: str,
    batch: int,
    rounds: int,
    *,
    sizes: Sizes = BASE,
    compiled: bool = True,
    seconds: float = float("inf"),
    also: Callable[[Candidates], dict[str, Any]] = lambda candidates: {},
) -> dict[str, Any]:
    """Measure one op at one batch: timings, refused candidates, facts about the results.

    Args:
        library: the kernels.
        op: a key of OPS.
        batch: samples.
        rounds: timed calls of each candidate; fewer once `seconds` are over.
        sizes: sizes of the call, and its device.
        compiled: whether torch.compile takes part.
        also: further measurements on the candidates.
    """
    candidates, refused, facts = OPS[op](library, batch, sizes, compiled=compiled)
    timings = interleave(candidates, rounds, device=sizes.device, seconds=seconds)
    found = {
        "timings": {name: asdict(timing) for name, timing in timings.items()},
        "not_run": refused,
        **also(candidates),
        **facts,
    }
    del candidates
    if sizes.device != "cpu":
        torch.cuda.empty_cache()
    return found


def measure_batch(library: Any, batch: int, rounds: int) -> dict[str, Any]:
    """Measure both ops at one batch."""
    return {op: measure_op(library, op, batch, rounds) for op in OPS}


def add_predictions(results: dict[str, Any]) -> None:
    """Put floor and prediction of static.json (in microseconds) next to the measurements, if it contains this GPU."""
    gpu = known_gpu(results["device_before"]["name"])
    static = json.loads(REPORT.read_text()) if REPORT.is_file() else None
    if gpu is None or static is None:
        results["prediction"] = f"none: static.json knows no {results['device_before']['name']}"
        return
    fresh = static["source"] == source_hash()
    results["prediction"] = f"of static.json for {gpu.name}" + ("" if fresh else f"; **stale**: run {STATIC_COMMAND}")
    for batch, ops in static["predictions"][gpu.name].items():
        for op, predicted in ops.items():
            if batch in results["batches"]:
                entry = {"floor": predicted["floor"] * 1e6, "predicted": predicted["predicted"] * 1e6}
                results["batches"][batch][op]["prediction_us"] = entry


def ratio_of(slow: dict[str, Any], fast: dict[str, Any]) -> tuple[float, float, float]:
    """How many times longer one timing is than another: by 10th and 90th percentiles least, by medians, and most."""
    return (
        slow["p10_us"] / fast["p90_us"],
        slow["median_us"] / fast["median_us"],
        slow["p90_us"] / fast["p10_us"],
    )


def verdicts(results: dict[str, Any]) -> list[str]:
    """Return a line for each target that was measured so far: met, missed, or why it is open."""
    lines: list[str] = []

    def judge(target: str, met: bool | None, seen: str) -> None:
        state = "open" if met is None else "met" if met else "missed"
        lines.append(f"{state}: {target}; seen {seen}")

    timings = results["batches"].get("32", {}).get("aligned_attention", {}).get("timings", {})
    for target, other, over in (
        (f"AlignedAttention at most {MOST_OVER_SDPA} x SDPA at B = 32", "SDPA", True),
        (f"AlignedAttention at least {LEAST_OVER_EAGER:g} x faster than eager torch at B = 32", "eager", False),
    ):
        if other not in timings:
            judge(target, None, f"nothing: {other} did not run")
            continue
        compared = (timings["kernel"], timings[other]) if over else (timings[other], timings["kernel"])
        low, middle, high = ratio_of(*compared)
        limit = MOST_OVER_SDPA if over else LEAST_OVER_EAGER
        seen = f"{middle:.2f} x ({low:.2f} to {high:.2f})"
        if low < limit < high:
            judge(target, None, f"{seen}, undecided: too noisy")
        else:
            judge(target, high <= limit if over else low >= limit, seen)
    rows = results.get("memory", [])
    growth = max((after["kernel"] / before["kernel"] for before, after in pairwise(rows)), default=None)
    linear = None if growth is None else growth <= MOST_GROWTH
    seen = "nothing: not measured" if growth is None else f"{growth:.2f} x where N doubles"
    judge("peak memory of AlignedAttention linear in N", linear, seen)
    target = f"TokenCompact at least {LEAST_OF_COPY * 100:.0f} % of measured copy bandwidth at B = 128"
    if "128" not in results["batches"]:
        judge(target, None, "nothing: not measured")
        return lines
    compact = results["batches"]["128"]["token_compact"]
    moved = compact_bytes(128, compact["tokens"] - 2)
    share = moved / (compact["timings"]["kernel"]["median_us"] * 1e-6) / results["copy_bytes_per_second"]
    judge(target, share >= LEAST_OF_COPY, f"{share * 100:.0f} %")
    return lines


def timing_table(results: dict[str, Any], op: str) -> str:
    """Table of measured and predicted times, and of every candidate relative to the kernel."""
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
    rows = results.get("memory", [])
    memory = [(row["length"], f"{row['kernel'] / 1e6:.1f}", f"{row['eager'] / 1e6:.1f}") for row in rows]
    after = results.get("device_after", {})
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
        table(("reading", "before", "after"), [(k, v, after.get(k, "")) for k, v in device.items()]),
    ]
    return "\n\n".join(parts) + "\n"


def rounded(value: Any) -> Any:
    """Return the same content with floats rounded to six significant digits."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry) for entry in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def write(results: dict[str, Any], folder: Path) -> Path:
    """Write results-<gpu>-<date>.json and .md into a folder, each complete or not at all; return the path of the JSON.

    Raises:
        OutputError: a file cannot be written, or a file of that name is not an earlier result.
    """
    gpu = re.sub(r"[^a-z0-9]+", "-", results["device_before"]["name"].lower()).strip("-")
    target = folder / f"results-{gpu}-{results['date'][:10]}.json"
    with write_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
    write_output(target, json.dumps(results, indent=1) + "\n", RESULTS)
    write_output(target.with_suffix(".md"), render(results), PAGE)
    return target


def measure(
    rounds: int = ROUNDS,
    *,
    batches: tuple[int, ...] = BATCHES,
    library: Path | None = None,
    on_progress: Callable[[str], None] = lambda line: None,
    on_results: Callable[[dict[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
    """Measure everything in the results file.

    Args:
        rounds: timed calls of each candidate.
        batches: sizes to measure.
        library: the kernels; None is the installed library.
        on_progress: called with a description of the next step.
        on_results: called with the results so far after each batch, and with all at the end.

    Raises:
        DeviceError: there is no GPU.
        KernelError: there is no library, or the kernels refuse to run.
    """
    require_device()
    kernels = load_library(library)
    results: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": source_hash(),
        "torch": torch.__version__,
        "rounds": rounds,
        "device_before": device_state(),
        "copy_bytes_per_second": copy_bandwidth(),
        "batches": {},
    }

    def hand_out() -> dict[str, Any]:
        add_predictions(results)
        results["verdicts"] = verdicts(results)
        content: dict[str, Any] = rounded(results)
        on_results(content)
        return content

    with torch.inference_mode():
        for batch in batches:
            on_progress(f"batch {batch}")
            results["batches"][str(batch)] = measure_batch(kernels, batch, rounds)
            hand_out()
        on_progress("memory")
        results["memory"] = memory_against_length(kernels, MEMORY_BATCH, LENGTHS)
    results["device_after"] = device_state()
    return hand_out()
