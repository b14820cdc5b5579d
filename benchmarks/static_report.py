"""What can be known about the kernels without a GPU: `python -m benchmarks.static_report`.

Compiles every kernel for every architecture (about two minutes of one core; cached in build/static), and writes
benchmarks/gpu/static.json and static.md: registers, shared memory, spills, occupancy, machine code, and the time that
each kernel is predicted to take on some GPUs. `python -m benchmarks.kernels` compares its measurements with them.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.progress import track

from benchmarks.gpu import floor
from benchmarks.gpu.architectures import GPUS, Gpu, occupancy
from benchmarks.gpu.compile import FILES, SMS, Kernel, compile_kernels, find_nvdisasm, source_hash, toolkit_version
from benchmarks.gpu.launches import dynamic_shared, launched, threads
from benchmarks.gpu.results import FOLDER, REPORT, STATIC_COMMAND, rounded
from benchmarks.gpu.static_markdown import render
from export.engine.plugin_build import find_nvcc
from export.errors import PluginError
from madtp.errors import MadtpError
from madtp.files.outputs import json_kind, marked_kind, write_output


def kernel_entry(kernel: Kernel, file: str, sm: int) -> dict[str, Any]:
    """One row of the report."""
    shared = dynamic_shared(kernel)
    return {
        "label": kernel.label,
        "file": file,
        "sm": sm,
        "threads": threads(kernel),
        "dynamic_shared": shared,
        "occupancy": asdict(occupancy(sm, kernel.registers, kernel.static_shared + shared, threads(kernel))),
        **asdict(kernel),
    }


def _op(costs: list[floor.Cost], **more: Any) -> dict[str, Any]:
    return {
        "floor": sum(cost.floor for cost in costs),
        "predicted": sum(cost.predicted for cost in costs),
        "kernels": [asdict(cost) for cost in costs],
        **more,
    }


def predictions(gpu: Gpu, kernels: list[Kernel]) -> dict[str, Any]:
    """Batch -> op -> floor, prediction and their parts, in seconds."""
    result = {}
    for batch in floor.BATCHES:
        attention = _op(
            floor.attention_costs(gpu, kernels, batch),
            former_statistics=asdict(floor.former_statistics_cost(gpu, kernels, batch)),
            sdpa=floor.sdpa_predictions(gpu, kernels, batch),
            eager=floor.eager_prediction(gpu, batch),
        )
        compact = _op(floor.compact_costs(gpu, kernels, batch))
        moved = floor.compact_bytes(batch, (floor.LENGTH - 1) // 2)
        compact["share_of_bandwidth"] = moved / compact["predicted"] / gpu.dram
        result[str(batch)] = {"aligned_attention": attention, "token_compact": compact}
    return result


def build_report(jobs: Iterable[tuple[str, int]]) -> dict[str, Any]:
    """Build the content of static.json.

    Raises:
        PluginError: there is no nvcc or no nvdisasm.
    """
    if find_nvdisasm(install=True) is None:
        raise PluginError(
            "there is no nvdisasm",
            "The report counts machine instructions with it; it is not on PATH, and pip could not install it.",
            "Install NVIDIA's CUDA toolkit, or make PyPI reachable.",
        )
    source = source_hash()
    compiled = {(file, sm): compile_kernels(file, sm) for file, sm in jobs}
    entries = [
        kernel_entry(kernel, file, sm)
        for (file, sm), kernels in compiled.items()
        for kernel in kernels
        if launched(kernel, sm)
    ]
    entries.sort(key=lambda entry: (entry["file"], entry["name"], entry["dtype"], entry["parameters"], entry["sm"]))
    return {
        "source": source,
        "toolkit": toolkit_version(find_nvcc()),
        "kernels": entries,
        "predictions": {
            name: predictions(gpu, [kernel for file in FILES for kernel in compiled[file, gpu.sm]])
            for name, gpu in GPUS.items()
        },
    }


def to_json(content: dict[str, Any]) -> str:
    """The report as JSON, a line for each kernel."""
    kernels = ",\n".join(json.dumps(kernel) for kernel in content["kernels"])
    rest = json.dumps({**content, "kernels": []}, indent=1)
    return rest.replace('"kernels": []', f'"kernels": [\n{kernels}\n]', 1) + "\n"


@click.command()
def main() -> None:
    """Write benchmarks/gpu/static.json and static.md."""
    console = Console(stderr=True)
    jobs = [(file, sm) for file in FILES for sm in SMS]
    try:
        content = rounded(build_report(track(jobs, "compiling the kernels", console=console)))
        write_output(REPORT, to_json(content), json_kind("this report", "kernels", "predictions"))
        write_output(
            FOLDER / "static.md", render(content), marked_kind("this report", f"Written by `{STATIC_COMMAND}`")
        )
    except MadtpError as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    console.print(f"{len(content['kernels'])} kernels in {FOLDER / 'static.md'}")


if __name__ == "__main__":
    main()
