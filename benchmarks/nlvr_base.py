"""Base-size NLVR with generated weights: what an export costs, and how fast the exported graph is.

    python -m benchmarks.nlvr_base [--json FILE]

1. `python -m export --engine base.plan` in a separate process: seconds per stage, CPU seconds, peak resident memory of
   each process (sampled) and of all together, as multiples of the checkpoint's size.
2. ONNX Runtime against our own eager torch, dense and at two temperatures, one request, interleaved round by round;
   medians with their 10th and 90th percentile. ONNX Runtime and torch use all cores, one after the other.

Weights and images follow the rule of `tests/helpers/generate.py`; token counts of generated weights say nothing about
accuracy.
"""

import json
import platform
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from export.bench.latency import Latency, interleave
from export.graph.fuse import fuse_products
from export.graph.trace import write_part
from export.runtime.onnx_runner import OnnxRunner
from madtp.console import command
from madtp.files.outputs import check_outputs, json_kind, write_output
from madtp.files.scratch import scratch_folder
from madtp.models.nlvr import NlvrModel
from madtp.models.parts import parts_of
from madtp.ops.flops import count_flops
from madtp.tasks.requests import TorchRunner
from tests.helpers.generate import generated_images
from tests.helpers.sizes import BASE, generated_model

TEMPERATURES = (0.4, 1.0)
TEXT_TOKENS = 22
SAMPLE_SECONDS = 0.05  # between looks at resident memory


def peak_memory(process: "subprocess.Popen[str]") -> tuple[dict[str, float], float]:
    """Follow a process and its children to their end.

    Returns:
        Peak resident bytes of each kind of process and of all together, and the CPU seconds of all, which other
        processes on the machine hardly change.
    """
    peaks = {"export": 0.0, "engine worker": 0.0, "together": 0.0}
    root, cpu = psutil.Process(process.pid), 0.0
    while process.poll() is None:
        total = 0.0
        try:
            cpu = max(cpu, sum(root.cpu_times()[:4]))  # with those of children that have ended
            for member in [root, *root.children(recursive=True)]:
                resident = member.memory_info().rss
                name = "export" if member.pid == root.pid else "engine worker"
                peaks[name] = max(peaks[name], resident)
                total += resident
        except psutil.NoSuchProcess:
            continue
        peaks["together"] = max(peaks["together"], total)
        time.sleep(SAMPLE_SECONDS)
    return peaks, cpu


def measure_export(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Run the export on `checkpoint`: wall seconds, seconds per stage, memory as multiples of the checkpoint."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "export", "--ckpt", str(checkpoint), "--engine", str(folder / "base.plan")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lines.extend, args=(process.stdout,))
    reader.start()
    peaks, cpu = peak_memory(process)
    reader.join()
    seconds = time.perf_counter() - begin
    if process.returncode != 0:
        raise click.ClickException("the export failed:\n" + "".join(lines))
    manifest = json.loads((folder / "base.json").read_text())
    size = checkpoint.stat().st_size
    return {
        "checkpoint_bytes": size,
        "plan_bytes": manifest["parts"][0]["bytes"],
        "wall_seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "stage_seconds": manifest["seconds"],
        "peak_rss_over_checkpoint": {name: round(peak / size, 2) for name, peak in peaks.items()},
        "validation": manifest["validation"],
    }


def base_inputs() -> dict[str, Tensor]:
    """One request."""
    images = generated_images(2, BASE.image_size, seed=100)
    words = torch.randint(1000, 30000, (1, TEXT_TOKENS), generator=torch.Generator().manual_seed(0))
    words[0, 0], words[0, -1] = BASE.enc_token_id, BASE.sep_token_id
    return {"image0": images[:1], "image1": images[1:], "input_ids": words, "attention_mask": torch.ones_like(words)}


def measure_latency(model: NlvrModel, folder: Path, seconds: float) -> list[dict[str, Any]]:
    """Measure latency and GFLOPs at temperature zero and TEMPERATURES, in ONNX Runtime and torch."""
    path = folder / "base.onnx"
    part = parts_of(model)["model"]
    write_part(part, path, external_data=True, passes=[fuse_products])
    onnx_runner, torch_runner = OnnxRunner(path), TorchRunner(part)
    inputs = base_inputs()
    candidates = {}
    for tau in (0.0, *TEMPERATURES):
        candidates[f"torch {tau:g}"] = lambda tau=tau: torch_runner.run(inputs, tau)
        candidates[f"onnxruntime {tau:g}"] = lambda tau=tau: onnx_runner.run(inputs, tau)
    latency = interleave(candidates, seconds=seconds, min_rounds=5)
    return [
        {
            "temperature": tau,
            "gflops": count_flops(model, inputs, tau).giga,
            "tokens": onnx_runner.run(inputs, tau)["vision_token_counts"][0].tolist(),
            "torch": asdict(latency[f"torch {tau:g}"]),
            "onnxruntime": asdict(latency[f"onnxruntime {tau:g}"]),
        }
        for tau in (0.0, *TEMPERATURES)
    ]


def latency_table(rows: list[dict[str, Any]]) -> Table:
    """Table of latency ratios and GFLOPs ratios."""
    table = Table(title="one request, milliseconds: median (p10-p90)")
    for column in (
        "temperature",
        "GFLOPs",
        "dense/pruned",
        "torch eager",
        "dense/pruned",
        "ONNX Runtime",
        "dense/pruned",
        "torch/ONNX Runtime",
    ):
        table.add_column(column, justify="right")
    dense = rows[0]
    for row in rows:
        cells = [f"{row['temperature']:g}", f"{row['gflops']:.1f}", f"{dense['gflops'] / row['gflops']:.2f}"]
        for runtime in ("torch", "onnxruntime"):
            value = Latency(**row[runtime])
            cells.append(f"{value.p50:.0f} ({value.p10:.0f}-{value.p90:.0f})")
            cells.append(f"{dense[runtime]['p50'] / value.p50:.2f}")
        table.add_row(*cells, f"{row['torch']['p50'] / row['onnxruntime']['p50']:.2f}")
    return table


RESULTS = json_kind("a result of this benchmark", "date", "machine", "latency", "export")


@click.command()
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the results there too.")
@click.option("--seconds", default=60.0, show_default=True, help="How long to time.")
def main(target: Path | None, seconds: float) -> None:
    """Measure export cost and latency of base-size NLVR."""
    check_outputs([(target, RESULTS)], ())
    console = Console(width=140)
    model = generated_model()
    with scratch_folder() as scratch:
        folder = scratch
        checkpoint = folder / "base.pt"
        torch.save({"model": model.state_dict(), "epoch": 0, "temperature": TEMPERATURES[0]}, checkpoint)
        rows = measure_latency(model, folder, seconds)
        console.print(latency_table(rows))
        del model
        cost = measure_export(checkpoint, folder)
    console.print_json(data={name: value for name, value in cost.items() if name != "validation"})
    results = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {psutil.cpu_count(logical=True)} cores",
        "load_before": np.round(psutil.getloadavg(), 2).tolist(),
        "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        "latency": rows,
        "export": cost,
    }
    if target is not None:
        write_output(target, json.dumps(results, indent=1) + "\n", RESULTS)


if __name__ == "__main__":
    sys.exit(command.run(main, "interrupted; nothing was written"))
