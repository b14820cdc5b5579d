"""Plans of every task at base size with generated weights, in any precision: do they build, how large, how long?

    python -m benchmarks.plans [--task NAME ...] [--precision NAME ...] [--layout NAME] [--folder DIR] [--json FILE]

Runs the stages of `python -m export --engine out.plan` up to the finished plans, for TensorRT for RTX, with plugins:
no GPU is needed, and nothing is compared (`benchmarks.nlvr_base` times a whole export). INT8 and FP8 take ranges of
random data, which are good enough to build with.
"""

import json
import platform
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import click
import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.tasks_base import generated_model
from calibration.ranges import RangeTable
from export.build.built_artifact import BuiltArtifact, BuiltPart, build_plans
from export.build.options import LAYOUTS, PRECISIONS, ExportOptions
from export.build.prepare import Prepared, prepare
from export.build.quantization import measure_ranges
from export.build.quantization_options import QUANTIZED, QuantizationOptions
from export.build.torch_results import torch_results
from export.build.traced_part import trace_parts
from madtp.checkpoint.loading import MODELS
from madtp.console import command
from madtp.files.outputs import check_outputs, json_kind, write_output
from madtp.files.scratch import scratch_folder
from tests.helpers import sizes

RESULT = json_kind("results of benchmarks.plans", "date", "machine", "plans")


@dataclass(frozen=True)
class Plans:
    """What the parts of a task became in a precision.

    Attributes:
        megabytes: of each part's plan; `layers` of its network, `plugin_layers` among them.
        quantized: weight products of the task that are quantized, of `products`.
        trace_seconds: of all parts.
        build_seconds: of counting tokens and building all parts; `cpu_seconds` of the builder's processes.
    """

    task: str
    precision: str
    checkpoint_megabytes: float
    megabytes: dict[str, float]
    layers: dict[str, int]
    plugin_layers: dict[str, int]
    quantized: int
    products: int
    trace_seconds: float
    build_seconds: float
    cpu_seconds: float


def write_checkpoint(task: str, path: Path) -> None:
    """A checkpoint at base size, whose weights are generated."""
    model = sizes.generated_model() if task == "nlvr" else generated_model(task)
    torch.save({"model": model.state_dict(), "epoch": 0, "temperature": sizes.TEMPERATURE}, path)


def build(prepared: Prepared, folder: Path) -> tuple[BuiltArtifact, float, float, float]:
    """The plans of all parts in `folder`; seconds of tracing and of building, CPU seconds of the builder."""
    begin = time.perf_counter()
    traced = trace_parts(prepared, folder, _ignore)
    traced_at, spent = time.perf_counter(), _children_seconds()
    built = build_plans(prepared, traced, torch_results(prepared, traced), folder, _ignore)
    return built, traced_at - begin, time.perf_counter() - traced_at, _children_seconds() - spent


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _ignore(_: str) -> None:
    """Nothing is shown of what happens within a build."""


def plans_of(task: str, precisions: Sequence[str], layout: str, folder: Path) -> Iterator[Plans]:
    """Build a task's plans in one precision after the other; each is deleted before the next is built."""
    checkpoint = folder / f"{task}.pt"
    write_checkpoint(task, checkpoint)
    table: RangeTable | None = None  # measured once, for INT8 and FP8
    for precision in precisions:
        with scratch_folder(folder) as scratch:
            quantization = QuantizationOptions(synthetic=precision in QUANTIZED)
            prepared = prepare(
                ExportOptions(
                    checkpoint,
                    scratch / f"{task}.plan",
                    backend="tensorrt-rtx",
                    layout=layout,
                    precision=precision,
                    quantization=quantization,
                )
            )
            found = prepared.quantization
            if found is not None:
                if table is None:
                    sha256, temperature = prepared.checkpoint.sha256, prepared.temperature
                    table = measure_ranges(found, prepared.load_model(), sha256, temperature, _ignore).table
                prepared = replace(prepared, quantization=replace(found, table=table))
            built, trace_seconds, build_seconds, cpu_seconds = build(prepared, scratch)
            parts = built.parts.items()
            yield Plans(
                task,
                precision,
                checkpoint.stat().st_size / 1e6,
                {name: _megabytes(built.folder, part) for name, part in parts},
                {name: part.layers or 0 for name, part in parts},
                {name: sum(part.plugin_layers.values()) for name, part in parts},
                len(frozenset[str]().union(*(part.traced.quantized for _, part in parts))),
                0 if found is None else len(found.products),
                trace_seconds,
                build_seconds,
                cpu_seconds,
            )
    checkpoint.unlink()


def _megabytes(folder: Path, part: BuiltPart) -> float:
    """Of all its engines."""
    files = [part.files[0], *(bucket.files[0] for bucket in part.buckets)]
    return sum((folder / name).stat().st_size for name in files) / 1e6


def plans_table(rows: Sequence[Plans]) -> Table:
    """A row for each part, with the times of its task."""
    table = Table(title="base size, generated weights")
    times = ("trace, s", "count tokens and build, s", "builder's CPU, s")
    for heading in ("", "precision", "MB", "layers", "plugins", "quantized", *times):
        table.add_column(heading, justify="right" if heading not in ("", "precision") else "left")
    for row in rows:
        seconds = [f"{value:.1f}" for value in (row.trace_seconds, row.build_seconds, row.cpu_seconds)]
        shares = [f"{row.quantized} of {row.products}" if row.products else "", *seconds]
        for part, megabytes in row.megabytes.items():
            counts = (str(row.layers[part]), str(row.plugin_layers[part]))
            table.add_row(f"{row.task} {part}", row.precision, f"{megabytes:.1f}", *counts, *shares)
            shares = [""] * len(shares)
    return table


@click.command()
@click.option("--task", "tasks", multiple=True, type=click.Choice(tuple(MODELS)), help="All by default; repeatable.")
@click.option("--precision", "precisions", multiple=True, type=click.Choice(PRECISIONS), help="All by default.")
@click.option("--layout", type=click.Choice(LAYOUTS), default=LAYOUTS[0], show_default=True, help="Of pruned tokens.")
@click.option("--folder", type=command.PATH, help="Where gigabytes may lie meanwhile (default: the temporary folder).")
@click.option("--json", "target", type=command.PATH, help="Write the results there too, after every plan.")
def main(
    tasks: Sequence[str], precisions: Sequence[str], layout: str, folder: Path | None, target: Path | None
) -> None:
    """Build plans of every task at base size."""
    if target is not None:
        check_outputs([(target, RESULT)], ())
    console, rows = Console(width=140), list[Plans]()
    with scratch_folder(folder) as scratch:
        for task in tasks or tuple(MODELS):
            for row in plans_of(task, precisions or PRECISIONS, layout, scratch):
                rows.append(row)
                console.print(plans_table([row]))
                if target is not None:
                    write_output(target, json.dumps(_content(rows), indent=1) + "\n", RESULT)
    console.print(plans_table(rows))


def _content(rows: Sequence[Plans]) -> dict[str, object]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {psutil.cpu_count(logical=True)} cores",
        "load": np.round(psutil.getloadavg(), 2).tolist(),
        "tensorrt_rtx": metadata.version("tensorrt_rtx"),
        "plans": [asdict(row) for row in rows],
    }


if __name__ == "__main__":
    sys.exit(command.run(main, "interrupted"))
