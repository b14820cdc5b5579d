"""Base-size NLVR with generated weights on a CPU: our precisions against what a user would run instead.

    python -m benchmarks.precision_latency [--threads N] [--seconds S] [--json FILE]

One request, interleaved round by round, all with the same number of threads:

- dense: the plain model (no statistics, no pruning) exported plainly to ONNX, and in eager torch in bfloat16;
- pruned: the `.onnx` that an export writes in fp32 and in INT8 (dynamic, the recipe of nlvr; INT8 static with made-up
  ranges, for its speed alone), with function bodies and inlined (`--plugins none`); and OpenVINO, its bfloat16 default,
  on the inlined fp32 file.

Generated weights say nothing about accuracy. Smoothing changes no node and is left out.
"""

import copy
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import openvino
import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.nlvr_base import TEMPERATURES, base_inputs
from calibration.recipes import recipe
from export.bench.latency import Latency, interleave
from export.graph.fuse import fuse_products
from export.graph.inline import inline_functions
from export.graph.quantize import Mode, Quantizer
from export.graph.trace import OPSET, write_part
from export.runtime.onnx_runner import OnnxRunner
from madtp.checkpoint.loading import Model
from madtp.console import command
from madtp.files.outputs import check_outputs, json_kind, write_output
from madtp.files.scratch import scratch_folder
from madtp.models.nlvr import NlvrModel
from madtp.models.parts import Part, parts_of
from madtp.models.weight_products import part_weight_names, weight_products
from tests.helpers.sizes import generated_model

RESULTS = json_kind("a result of this benchmark", "date", "machine", "temperature", "latency")
FLOATS = ("logits", "states", "cache", "feature", "embed", "tokens")  # how the names of results end, not counts
RANGES = (-4.0, 4.0)  # made up: they do not change what a call costs
PAUSE, PAUSE_SECONDS = "pause before", 0.1
DENSE = "dense fp32, plain ONNX"
Call = Callable[[], object]


class Dense(nn.Module):
    """A part without pruning, as somebody who does not know of it would export it."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part, self.results = part.module, [name.endswith(FLOATS) for name in part.outputs]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(compress(self.part(*inputs, 0.0), self.results))


def dense_onnx(part: Part, inputs: Mapping[str, Tensor], path: Path, threads: int) -> Call:
    """A part without pruning in ONNX Runtime, exported by torch alone."""
    torch.onnx.export(
        Dense(part).eval(), tuple(inputs.values()), str(path), dynamo=True, opset_version=OPSET, external_data=True,
        input_names=list(inputs), verbose=False,
    )  # fmt: skip
    runner = OnnxRunner(path, threads)
    return partial(runner.run, inputs, 0.0)


def dense_bfloat16(model: NlvrModel, inputs: dict[str, Tensor]) -> Call:
    """The dense model in eager torch."""
    narrow = copy.deepcopy(model).bfloat16()
    return torch.no_grad()(partial(narrow, *inputs.values(), 0.0))


def write_exported(model: Model, part: Part, path: Path, mode: Mode | None) -> None:
    """Write the .onnx of an export, in fp32 or INT8."""
    passes = [fuse_products]
    if mode is not None:
        products = weight_products(model).values()
        scores = {product.name for product in products if product.group == "alignment"}
        kept = recipe(model.config.task, "int8").kept(products)
        chosen = frozenset(product.name for product in products) - kept - scores
        ranges = {} if mode == "dynamic" else dict.fromkeys(chosen, RANGES)
        quantizer = Quantizer("int8", mode, chosen, ranges)
        passes.append(quantizer.graph_pass(part_weight_names(model, part), set()))
    write_part(part, path, external_data=True, passes=passes)


def paused(calls: Mapping[str, Call], seconds: float, min_rounds: int = 7) -> dict[str, Latency]:
    """Latency of calls that take turns, with a pause before each.

    The threads of an ONNX Runtime session spin for a while after a call, and take a core of the next one's. Who runs
    one session does not have that.
    """
    turns = {
        key: value
        for name, call in calls.items()
        for key, value in ((f"{PAUSE} {name}", partial(time.sleep, PAUSE_SECONDS)), (name, call))
    }
    latency = interleave(turns, seconds=seconds, min_rounds=min_rounds)
    return {name: value for name, value in latency.items() if not name.startswith(PAUSE)}


def openvino_call(path: Path, inputs: dict[str, Tensor], temperature: float, threads: int) -> Call:
    """OpenVINO as it comes, which is in bfloat16 where the CPU has that."""
    model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_NUM_THREADS": threads})
    given = {name: value.numpy() for name, value in inputs.items()} | {"temperature": np.float32(temperature)}
    return partial(model, given)


def measure(model: NlvrModel, folder: Path, temperature: float, threads: int, seconds: float) -> dict[str, Latency]:
    """Latency of all."""
    torch.set_num_threads(threads)
    inputs, part = base_inputs(), parts_of(model)["model"]
    calls: dict[str, Call] = {
        DENSE: dense_onnx(part, inputs, folder / "dense.onnx", threads),
        "dense bf16, eager torch": dense_bfloat16(model, inputs),
    }
    modes: dict[str, Mode | None] = {"fp32": None, "int8 dynamic": "dynamic", "int8 static": "static"}
    for name, mode in modes.items():
        path = folder / f"{name.replace(' ', '-')}.onnx"
        inlined = path.with_stem(f"{path.stem}-inlined")
        write_exported(model, part, path, mode)
        inline_functions(path, inlined)
        for suffix, file in (("", path), (", inlined", inlined)):
            calls[f"pruned {name}{suffix}"] = partial(OnnxRunner(file, threads).run, inputs, temperature)
        if mode is None:
            calls["pruned, OpenVINO's default"] = openvino_call(inlined, inputs, temperature, threads)
    return paused(calls, seconds)


def latency_table(latency: dict[str, Latency], title: str) -> Table:
    """A row for each, with its ratio to the dense fp32 model."""
    table = Table(title=title)
    for column in ("", "p50 (p10-p90)", "times as fast as dense fp32"):
        table.add_column(column, justify="right" if column else "left")
    for name, value in latency.items():
        spread = f"{value.p50:.1f} ({value.p10:.1f}-{value.p90:.1f})"
        table.add_row(name, spread, f"{latency[DENSE].p50 / value.p50:.2f}")
    return table


@click.command()
@click.option("--temperature", default=TEMPERATURES[0], show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--seconds", default=60.0, show_default=True, help="How long to time.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the results there too.")
def main(temperature: float, threads: int, seconds: float, target: Path | None) -> None:
    """Time our precisions against what a user would run instead."""
    check_outputs([(target, RESULTS)], ())
    with scratch_folder() as folder:
        latency = measure(generated_model(), folder, temperature, threads, seconds)
    versions = f"onnxruntime {onnxruntime.__version__}, openvino {openvino.__version__}, torch {torch.__version__}"
    calls = next(iter(latency.values())).calls
    title = f"one request, milliseconds, temperature {temperature:g}, {threads} threads, {calls} rounds; {versions}"
    Console(width=140).print(latency_table(latency, title))
    if target is not None:
        results: dict[str, Any] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {psutil.cpu_count(logical=True)} cores",
            "temperature": temperature,
            "latency": {name: asdict(value) for name, value in latency.items()},
        }
        write_output(target, json.dumps(results, indent=1) + "\n", RESULTS)


if __name__ == "__main__":
    sys.exit(command.run(main, "interrupted; nothing was written"))
