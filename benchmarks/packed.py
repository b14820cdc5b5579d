"""NLVR at base size with generated weights on a CPU: the packed layout beside the dynamic one and the dense model.

    python -m benchmarks.packed [--batch N ...] [--requests N] [--counted-only] [--timed N ...] [--seconds S] [--json F]

1. Counted, so the same on any machine: token rows that enter a layer, and multiply-adds, of the same requests in
   batches of each size. A dynamic batch keeps the most tokens that one of its requests asks for and fills up its
   texts; a packed one keeps of each request what that keeps alone. With capacities, which GPUs want, products with
   weights run over all rows that there is room for: chosen by `calibration` on these requests for an overflow of
   OVERFLOW of the batches, counted on the first batch.
2. Measured, unless `--counted-only`: milliseconds of a batch in ONNX Runtime on the op library, layouts taking turns,
   with a pause before each call; dense up to DENSE_BATCH requests.

Requests are crops of two photographs, at scales from a part to the whole, and sentences of 6 to 30 ids.
"""

import json
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
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
from calibration.capacities import Layers, choose_capacities, dense_rows
from calibration.counts import RequestCounts
from calibration.tokens import Source
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
OVERFLOW = 1e-3
DENSE_BATCH = 8  # a larger one takes half a minute a call
MIN_ROUNDS = 5
Inputs = dict[str, Tensor]


def batches_of(model: NlvrModel, requests: Sequence[Request], batch: int) -> Iterator[Inputs]:
    """All requests in batches."""
    for begin in range(0, len(requests), batch):
        yield collate(requests[begin : begin + batch], model.config)


@dataclass(frozen=True)
class Executed:
    """What a request takes: token rows that enter the layers of all encoders, and GFLOPs."""

    rows: float
    gflops: float


def entering(model: NlvrModel, inputs: Inputs) -> dict[str, int]:
    """By encoder, rows of a batch before the first layer."""
    requests, words = inputs["input_ids"].shape
    return {"vision": 2 * requests * model.config.vision_tokens, "text": requests * words}


def counted(
    model: NlvrModel,
    requests: Sequence[Request],
    batch: int,
    temperature: float,
    kept: RequestCounts | None = None,
) -> Executed:
    """In dynamic batches; of 1, what packed batches of any size come to. `kept` gets what the requests keep, then."""
    rows, giga = 0, 0.0
    for inputs in batches_of(model, requests, batch):
        outputs: list[Any] = []
        giga += count_call(partial(_answer, model, inputs, temperature, outputs)).giga
        counts = {"vision": outputs[0].vision_token_counts, "text": outputs[0].text_token_counts}
        rows += sum(entering(model, inputs).values()) + sum(int(tokens[:, :-1].sum()) for tokens in counts.values())
        if kept is not None:
            kept.add(counts, inputs["input_ids"].shape[1])
    return Executed(rows / len(requests), giga / len(requests))


def _answer(model: NlvrModel, inputs: Inputs, temperature: float, outputs: list[Any]) -> None:
    outputs.append(model(**inputs, temperature=temperature))


def rooms(model: NlvrModel, kept: RequestCounts, batches: Sequence[int]) -> dict[int, Layers]:
    """By batch size, the capacities of the calibrated bucket."""
    dense = dense_rows(model.config, kept.sequences, kept.longest_text)
    chosen = choose_capacities(kept, {"model": ("vision", "text")}, dense, batches, OVERFLOW, kept.samples // 4)
    return {batch: buckets[0].rows for batch, buckets in chosen.buckets.items()}


def counted_with_rooms(
    model: NlvrModel, requests: Sequence[Request], batch: int, temperature: float, room: Layers
) -> Executed:
    """With capacities, in the first batch: rows that there is room for are executed, tokens or not."""
    inputs = next(batches_of(model, requests, batch))
    sized = model.packed_copy(sized=True)
    sized.visual_encoder.capacities, sized.text_encoder.capacities = room["vision"], room["text"]
    rows = sum(entering(model, inputs).values()) + sum(sum(layers[:-1]) for layers in room.values())
    return Executed(rows / batch, count_call(partial(sized, **inputs, temperature=temperature)).giga / batch)


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
    """What the layouts execute; ratios are those of dynamic to packed."""
    table = Table(title=title)
    for what in ("rows", "GFLOPs"):
        for column in (
            *(["batch"] if what == "rows" else []),
            f"{what}, dynamic",
            "packed",
            "ratio",
            "capacities",
            "dense",
        ):
            table.add_column(column, justify="right")
    for row in rows:
        cells = [str(row["batch"])]
        for what, digits in (("rows", 0), ("gflops", 2)):
            dynamic, packed, with_rooms, dense = (
                row[layout][what] for layout in ("dynamic", "packed", "capacities", "dense")
            )
            cells += [f"{dynamic:.{digits}f}", f"{packed:.{digits}f}", f"{dynamic / packed:.2f}"]
            cells += [f"{with_rooms:.{digits}f}", f"{dense:.{digits}f}"]
        table.add_row(*cells)
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


def timed_batches(
    console: Console,
    model: NlvrModel,
    requests: Sequence[Request],
    batches: Sequence[int],
    temperature: float,
    threads: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """Time and print them."""
    latency = []
    with scratch_folder() as folder:
        write_exported(model, parts_of(model)["model"], folder / "dynamic.onnx", None)
        packed = model.packed_copy()
        write_exported(packed, parts_of(packed)["model"], folder / "packed.onnx", None)
        library = choose_execution([folder / "packed.onnx"])
        for batch in batches:
            found = measure(model, requests, batch, folder, temperature, threads, seconds)
            latency.append({"batch": batch, "latency": {name: asdict(value) for name, value in found.items()}})
    title = f"milliseconds a batch, p50 (p10-p90), fp32, {threads} threads; onnxruntime {onnxruntime.__version__}"
    console.print(latency_table(latency, title))
    console.print(f"runs {library}")
    return latency


@click.command()
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 8, 32, 64), show_default=True)
@click.option("--timed", multiple=True, type=int, default=(1, 8, 32), show_default=True, help="Batches to time.")
@click.option("--requests", "size", default=64, show_default=True)
@click.option("--counted-only", is_flag=True, help="Time nothing.")
@click.option("--temperature", default=sizes.TEMPERATURE, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--seconds", default=60.0, show_default=True, help="How long to time each batch.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the results there too.")
def main(
    batches: tuple[int, ...],
    timed: tuple[int, ...],
    size: int,
    counted_only: bool,
    temperature: float,
    threads: int,
    seconds: float,
    target: Path | None,
) -> None:
    """Count and time what the packed layout saves."""
    check_outputs([(target, RESULTS)], [])
    torch.set_num_threads(threads)
    console, model = Console(width=140), sizes.generated_model()
    requests = varied_requests(model.config, size)
    kept = RequestCounts(Source("", "nlvr", temperature, "varied requests", None))
    alone, dense = counted(model, requests, 1, temperature, kept), counted(model, requests[:1], 1, 0.0)
    room = rooms(model, kept, batches)
    rows: list[dict[str, Any]] = []
    for batch in batches:
        dynamic = alone if batch == 1 else counted(model, requests, batch, temperature)
        sized = counted_with_rooms(model, requests, batch, temperature, room[batch])
        layouts = {"dynamic": dynamic, "packed": alone, "capacities": sized, "dense": dense}
        rows.append({"batch": batch, **{name: asdict(executed) for name, executed in layouts.items()}})
    console.print(counted_table(rows, f"executed a request, temperature {temperature:g}, {size} requests"))
    latency = [] if counted_only else timed_batches(console, model, requests, timed, temperature, threads, seconds)
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
