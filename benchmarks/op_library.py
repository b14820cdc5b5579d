"""Every task at base size with generated weights on a CPU: what the op library's kernels make of a latency.

    python -m benchmarks.op_library [--task NAME ...] [--threads N] [--seconds S] [--library PATH] [--json FILE]

Each part that prunes, one request, interleaved round by round with a pause before each call, all with the same number
of threads: the dense part exported plainly to ONNX, and the pruned part as an export writes it, in fp32 and in INT8
(dynamic, the task's recipe), on function bodies and on kernels. `match` of retrieval gets the image tokens that each
would have left: all of them dense, the kept ones pruned.

Generated weights say nothing about accuracy; answers of kernels and bodies are compared all the same.
"""

import json
import platform
import sys
from collections.abc import Mapping
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

from benchmarks import tasks_base
from benchmarks.nlvr_base import base_inputs
from benchmarks.precision_latency import DENSE, Call, dense_onnx, paused, write_exported
from export.bench.latency import Latency
from export.engine.op_library import OpLibrary
from export.errors import PluginError
from export.graph.quantize import Mode
from export.runtime.execution import BODIES, choose_execution
from export.runtime.onnx_runner import OnnxRunner
from madtp.console import command
from madtp.files.outputs import check_outputs, json_kind, write_output
from madtp.files.scratch import scratch_folder
from madtp.models.parts import Part, parts_of
from tests.helpers import sizes

RESULTS = json_kind("a result of this benchmark", "date", "machine", "temperature", "library", "parts")
TASKS = ("nlvr", *tasks_base.CONFIGS)
PRECISIONS: dict[str, Mode | None] = {"fp32": None, "int8": "dynamic"}
MIN_ROUNDS = 7


def measure_part(
    model: Any,
    part: Part,
    inputs: Mapping[str, Mapping[str, Tensor]],
    folder: Path,
    temperature: float,
    threads: int,
    seconds: float,
    library: Path | None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Latencies of a part, and its image tokens, dense and pruned, where it makes some.

    Args:
        inputs: "dense" and "pruned".
    """
    calls: dict[str, Call] = {DENSE: dense_onnx(part, inputs["dense"], folder / "dense.onnx", threads)}
    used: OpLibrary | None = None
    outputs, differences = {}, {}
    for precision, mode in PRECISIONS.items():
        path = folder / f"{precision}.onnx"
        write_exported(model, part, path, mode)
        execution = choose_execution([path], library)
        used = execution.library
        if used is None:
            raise PluginError("there is no op library to measure", execution.reason, "./build.sh plugins builds it.")
        runners = {"bodies": OnnxRunner(path, threads, BODIES), "kernels": OnnxRunner(path, threads, execution)}
        for name, runner in runners.items():
            calls[f"pruned {precision}, {name}"] = partial(runner.run, inputs["pruned"], temperature)
            outputs[name] = runner.run(inputs["pruned"], temperature)
        differences[precision] = {
            key: _difference(value, outputs["kernels"][key]) for key, value in outputs["bodies"].items()
        }
        if precision == "fp32":
            tokens = {
                "dense": runners["kernels"].run(inputs["dense"], 0.0).get("image_tokens"),
                "pruned": outputs["kernels"].get("image_tokens"),
            }
    latency = paused(calls, seconds, MIN_ROUNDS)
    row = {
        "part": f"{model.config.task} {part.name}",
        "library": used.to_json() if used is not None else None,
        "differences": differences,
        "latency": {name: asdict(value) for name, value in latency.items()},
    }
    return row, {name: value for name, value in tokens.items() if value is not None}


def _difference(bodies: Tensor, kernels: Tensor) -> float | None:
    """Largest |difference|; None where they kept other numbers of tokens."""
    if bodies.shape != kernels.shape:
        return None
    return float((bodies.double() - kernels.double()).abs().max())


def measure_task(
    task: str, folder: Path, temperature: float, threads: int, seconds: float, library: Path | None
) -> list[dict[str, Any]]:
    """Latencies of all parts of a task that prune."""
    model = sizes.generated_model() if task == "nlvr" else tasks_base.generated_model(task)
    rows, tokens = [], dict[str, Tensor]()
    for part in parts_of(model).values():
        if not part.encoders:
            continue
        inputs = {
            kind: base_inputs() if task == "nlvr" else tasks_base.part_inputs(model.config, part, tokens.get(kind))
            for kind in ("dense", "pruned")
        }
        row, found = measure_part(model, part, inputs, folder, temperature, threads, seconds, library)
        rows.append(row)
        tokens = found or tokens
        for file in folder.iterdir():
            file.unlink()  # gigabytes
    return rows


def latency_table(rows: list[dict[str, Any]], title: str) -> Table:
    """A row for every part: each latency, and how many times as fast it is as the dense part."""
    table = Table(title=title)
    names = list(rows[0]["latency"])
    for column in ("", *names, "bodies / kernels, fp32", "int8"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        latency = {name: Latency(**value) for name, value in row["latency"].items()}
        cells = [
            f"{value.p50:.1f} ({value.p10:.1f}-{value.p90:.1f})"
            + ("" if name == DENSE else f"\n{latency[DENSE].p50 / value.p50:.2f}x")
            for name, value in latency.items()
        ]
        gains = [
            f"{latency[f'pruned {precision}, bodies'].p50 / latency[f'pruned {precision}, kernels'].p50:.2f}"
            for precision in PRECISIONS
        ]
        table.add_row(row["part"], *cells, *gains)
    return table


@click.command()
@click.option("--task", "tasks", multiple=True, type=click.Choice(TASKS), help="All by default; repeatable.")
@click.option("--temperature", default=sizes.TEMPERATURE, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--seconds", default=30.0, show_default=True, help="How long to time each part.")
@click.option("--library", type=click.Path(path_type=Path), help="The op library (default: the installed one).")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the results there too.")
def main(
    tasks: tuple[str, ...],
    temperature: float,
    threads: int,
    seconds: float,
    library: Path | None,
    target: Path | None,
) -> None:
    """Time every task with the op library and without."""
    check_outputs([(target, RESULTS)], [library])
    torch.set_num_threads(threads)
    console, rows = Console(width=160), []
    title = f"one request, milliseconds p50 (p10-p90), temperature {temperature:g}, {threads} threads"
    for task in tasks or TASKS:
        with scratch_folder() as folder:
            rows += measure_task(task, folder, temperature, threads, seconds, library)
        console.print(latency_table(rows, f"{title}; onnxruntime {onnxruntime.__version__}"))
    results: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {psutil.cpu_count(logical=True)} cores",
        "load_after": np.round(psutil.getloadavg(), 2).tolist(),
        "temperature": temperature,
        "threads": threads,
        "library": rows[0]["library"],
        "parts": rows,
    }
    for row in rows:
        console.print(f"{row['part']}: kernels - bodies, largest: {json.dumps(row['differences'])}", soft_wrap=True)
    if target is not None:
        write_output(target, json.dumps(results, indent=1) + "\n", RESULTS)


if __name__ == "__main__":
    sys.exit(command.run(main, "interrupted; nothing was written"))
