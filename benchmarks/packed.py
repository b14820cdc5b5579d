"""NLVR at base size with generated weights on a CPU: the packed layout beside the dynamic one and the dense model.

    python -m benchmarks.packed [--batch N ...] [--requests N] [--seconds S] [--threads N] [--json FILE]

1. Counted, so the same on any machine: token rows that enter a layer, and multiply-adds, of the same requests in
   batches of each size. A dynamic batch keeps the most tokens that one of its requests asks for and fills up its
   texts; a packed one keeps of each request what that keeps alone.
2. Measured: milliseconds of a batch in ONNX Runtime on the op library, layouts taking turns, with a pause before each
   call; dense up to DENSE_BATCH requests.

Requests are crops of two photographs, at scales from a part to the whole, and sentences of 6 to 30 ids.
"""

import json
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
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

from benchmarks.precision_latency import DENSE, Call, dense_onnx, paused, write_exported
from benchmarks.requests import varied_requests
from export.bench.latency import Latency
from export.runtime.execution import choose_execution
from export.runtime.onnx_runner import OnnxRunner
from madtp.console import command
from madtp.data.samples import Request, collate
from madtp.files.outputs import check_outputs, json_kind, write_output
from madtp.files.scratch import scratch_folder
from madtp.models.nlvr import NlvrModel
from madtp.models.parts import parts_of
from madtp.ops.flops import count_call
from tests.helpers import sizes

RESULTS = json_kind("a result of this benchmark", "date", "machine", "temperature", "counted", "latency")
DENSE_BATCH = 8  # a larger one takes half a minute a call
MIN_ROUNDS = 5
Inputs = dict[str, Tensor]


def batches_of(model: NlvrModel, requests: Sequence[Request], batch: int) -> Iterator[Inputs]:
    """All requests in batches."""
    for begin in range(0, len(requests), batch):
        yield collate(requests[begin : begin + batch], model.config)


def count(model: NlvrModel, inputs: Inputs, temperature: float) -> tuple[int, float]:
    """Token rows that enter the layers of all encoders, and GFLOPs, of a dynamic batch."""
    outputs: list[Any] = []
    flops = count_call(lambda: outputs.append(model(**inputs, temperature=temperature)))
    entering = {"vision": model.config.vision_tokens, "text": inputs["input_ids"].shape[1]}
    rows = 0
    for encoder, counts in (("vision", outputs[0].vision_token_counts), ("text", outputs[0].text_token_counts)):
        rows += len(counts) * entering[encoder] + int(counts[:, :-1].sum())
    return rows, flops.giga


def counted(model: NlvrModel, requests: Sequence[Request], batch: int, temperature: float) -> tuple[float, float]:
    """Rows and GFLOPs a request, in dynamic batches; of 1, what packed batches of any size come to."""
    with torch.no_grad():
        found = [count(model, inputs, temperature) for inputs in batches_of(model, requests, batch)]
    rows, giga = (sum(column) / len(requests) for column in zip(*found, strict=True))
    return rows, giga


def measure(
    model: NlvrModel,
    requests: Sequence[Request],
    batch: int,
    folder: Path,
    temperature: float,
    threads: int,
    seconds: float,
) -> dict[str, Latency]:
    """Latency of the first batch of each layout, and dense."""
    inputs = next(batches_of(model, requests, batch))
    calls: dict[str, Call] = {}
    if batch <= DENSE_BATCH:
        calls[DENSE] = dense_onnx(parts_of(model)["model"], inputs, folder / f"dense-{batch}.onnx", threads)
    for layout in ("dynamic", "packed"):
        path = folder / f"{layout}.onnx"
        runner = OnnxRunner(path, threads, choose_execution([path]))
        calls[layout] = partial(runner.run, inputs, temperature)
    return paused(calls, seconds, MIN_ROUNDS)


def counted_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """What the layouts execute."""
    table = Table(title=title)
    for column in ("batch", "rows, dynamic", "rows, packed", "ratio", "GFLOPs, dynamic", "packed", "ratio", "dense"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row["batch"]),
            f"{row['dynamic_rows']:.0f}",
            f"{row['packed_rows']:.0f}",
            f"{row['dynamic_rows'] / row['packed_rows']:.2f}",
            f"{row['dynamic_gflops']:.2f}",
            f"{row['packed_gflops']:.2f}",
            f"{row['dynamic_gflops'] / row['packed_gflops']:.2f}",
            f"{row['dense_gflops']:.1f}",
        )
    return table


def latency_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """Milliseconds of a batch."""
    table = Table(title=title)
    for column in ("batch", "dense", "dynamic", "packed", "dynamic / packed"):
        table.add_column(column, justify="right")
    for row in rows:
        latency = {name: Latency(**value) for name, value in row["latency"].items()}
        cells = [
            f"{latency[name].p50:.0f} ({latency[name].p10:.0f}-{latency[name].p90:.0f})" if name in latency else ""
            for name in (DENSE, "dynamic", "packed")
        ]
        table.add_row(str(row["batch"]), *cells, f"{latency['dynamic'].p50 / latency['packed'].p50:.2f}")
    return table


@click.command()
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 8, 32, 64), show_default=True)
@click.option("--timed", multiple=True, type=int, default=(1, 8, 32), show_default=True, help="Batches to time.")
@click.option("--requests", "size", default=64, show_default=True)
@click.option("--temperature", default=sizes.TEMPERATURE, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--seconds", default=60.0, show_default=True, help="How long to time each batch.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the results there too.")
def main(
    batches: tuple[int, ...],
    timed: tuple[int, ...],
    size: int,
    temperature: float,
    threads: int,
    seconds: float,
    target: Path | None,
) -> None:
    """Count and time what the packed layout saves."""
    check_outputs([(target, RESULTS)], [])
    torch.set_num_threads(threads)
    console, model = Console(width=130), sizes.generated_model()
    requests = varied_requests(model.config, size)
    alone = counted(model, requests, 1, temperature)
    dense = counted(model, requests[:1], 1, 0.0)
    rows = []
    for batch in batches:
        found = alone if batch == 1 else counted(model, requests, batch, temperature)
        rows.append(
            {
                "batch": batch,
                "dynamic_rows": found[0],
                "packed_rows": alone[0],
                "dynamic_gflops": found[1],
                "packed_gflops": alone[1],
                "dense_gflops": dense[1],
            }
        )
    console.print(counted_table(rows, f"executed a request, temperature {temperature:g}, {size} requests"))
    latency = []
    with scratch_folder() as folder:
        write_exported(model, parts_of(model)["model"], folder / "dynamic.onnx", None)
        packed = model.packed_copy()
        write_exported(packed, parts_of(packed)["model"], folder / "packed.onnx", None)
        library = choose_execution([folder / "packed.onnx"])
        for batch in timed:
            found_latency = measure(model, requests, batch, folder, temperature, threads, seconds)
            latency.append({"batch": batch, "latency": {name: asdict(value) for name, value in found_latency.items()}})
    title = f"milliseconds a batch, p50 (p10-p90), fp32, {threads} threads; onnxruntime {onnxruntime.__version__}"
    console.print(latency_table(latency, title))
    console.print(f"runs {library}")
    if target is not None:
        results = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {psutil.cpu_count(logical=True)} cores",
            "load_after": np.round(psutil.getloadavg(), 2).tolist(),
            "temperature": temperature,
            "threads": threads,
            "counted": rows,
            "latency": latency,
        }
        write_output(target, json.dumps(results, indent=1) + "\n", RESULTS)


if __name__ == "__main__":
    sys.exit(command.run(main, "interrupted; nothing was written"))
