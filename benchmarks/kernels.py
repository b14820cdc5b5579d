"""The kernels of both ops on a CUDA GPU, against eager torch, torch.compile and scaled_dot_product_attention.

    python -m benchmarks.kernels [--out DIR] [--json FILE]      (./build.sh gpu-bench builds the kernels first)

Base size, fp16, batches of 1, 8, 32 and 128. Each candidate is timed between two CUDA events, L2 flushed before, in
interleaved rounds after a warm-up: median and 10th to 90th percentile. The GPU's clocks are read before and after,
never within. Results are compared with the predictions of benchmarks/gpu/static.json and with the project's targets; a
missed target is printed, not an error. Writes results-<gpu>-<date>.json and .md into DIR (benchmarks/gpu) after each
batch, so that an interrupted run leaves its results so far.
"""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.gpu.results import FOLDER, RESULTS, ROUNDS, measure, render, write
from madtp.errors import MadtpError, OutputError
from madtp.files.outputs import check_outputs, write_output

WRONG_MACHINE = 2  # exit status


@click.command()
@click.option("--out", default=FOLDER, type=click.Path(path_type=Path, file_okay=False), help="Folder of the results.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the results there too.")
@click.option("--rounds", default=ROUNDS, show_default=True, type=click.IntRange(min=5), help="Timed calls of each.")
def main(out: Path, target: Path | None, rounds: int) -> None:
    """Time the kernels and torch on this machine's GPU."""
    console = Console(stderr=True)

    def on_results(results: dict[str, Any]) -> None:
        with suppress(OutputError):  # no reason to lose the rest; said at the end, if there is no room then either
            write(results, out)

    try:
        check_outputs([(target, RESULTS)], ())
        results = measure(rounds, on_progress=console.print, on_results=on_results)
        Console().print(render(results), markup=False, highlight=False, soft_wrap=True)
        write(results, out)
        if target is not None:
            write_output(target, json.dumps(results, indent=1) + "\n", RESULTS)
    except MadtpError as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(WRONG_MACHINE)


if __name__ == "__main__":
    main()
