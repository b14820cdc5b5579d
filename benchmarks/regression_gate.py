"""Does the gate of `python -m export bench` tell a slower artifact from the same one, on a noisy machine?

    python -m benchmarks.regression_gate --artifact out.json [--runs 20] [--recorded-runs 5] [--seconds 12]

Each run compares an artifact with itself, which must never fail, and with 15 % more work, which must always fail side
by side; also against latencies recorded just before. The extra work is CPU time of the same process after each call of
a part, so it grows with the load of the machine as the call does. Runners are real.
"""

import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import psutil
from rich.console import Console
from rich.table import Table
from torch import Tensor

from export.artifact.outputs import files_of
from export.bench.measurement import MEASUREMENT
from export.bench.run import BenchOptions, bench
from export.bench.verdict import overall
from export.runtime.artifact import Artifact
from export.runtime.runner import RunnerOptions
from madtp.console import command
from madtp.files.outputs import check_outputs, json_kind, write_output
from madtp.files.scratch import scratch_folder
from madtp.tasks.requests import Outputs, Runner

EXTRA = 0.15
CALIBRATION_CALLS = 40


class SlowRunner:
    """A runner that burns CPU time after each call: EXTRA of the median of its calls."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._seconds: dict[float, list[float]] = {}

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        begin = time.process_time()
        outputs = self._runner.run(inputs, temperature)
        taken = self._seconds.setdefault(temperature, [])
        if len(taken) < CALIBRATION_CALLS:
            taken.append(time.process_time() - begin)
        end = time.process_time() + EXTRA * statistics.median(taken)
        while time.process_time() < end:
            pass
        return outputs


class Quiet:
    """Shows no progress."""

    def stage(self, description: str) -> None:
        """Show nothing."""

    def detail(self, text: str) -> None:
        """Show nothing."""


class Opener:
    """Opens real runners; those of the new artifact, which a run opens first and last, are slowed down."""

    def __init__(self) -> None:
        self.opened = 0

    def __call__(self, artifact: Artifact, options: RunnerOptions) -> dict[str, Runner]:
        runners = artifact.open_runners(options)
        self.opened += 1
        return {name: SlowRunner(runner) for name, runner in runners.items()} if self.opened in (1, 4) else runners


def outcome(options: BenchOptions, slow: bool) -> str:
    """The verdict of one run."""
    result = bench(options, Quiet(), opener=Opener()) if slow else bench(options, Quiet())
    return overall(result.verdicts).value


def recorded(options: BenchOptions, folder: Path, name: str) -> Path:
    """A baseline whose artifact the gate cannot find, so that it is not run side by side."""
    measurement = bench(options, Quiet()).measurement
    gone = {**measurement.artifact, "path": str(folder / "gone" / "out.json")}
    path = folder / f"{name}.json"
    write_output(path, json.dumps(replace(measurement, artifact=gone).to_json()), MEASUREMENT)
    return path


RESULTS = json_kind("a result of this benchmark", "date", "load", "verdicts")


@click.command()
@click.option("--artifact", type=click.Path(path_type=Path), required=True)
@click.option("--runs", default=20, show_default=True, help="Number of runs side by side.")
@click.option("--recorded-runs", default=5, show_default=True, help="Number of runs against recorded latencies.")
@click.option("--seconds", default=12.0, show_default=True, help="Time budget of a run.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the results as JSON.")
def main(artifact: Path, runs: int, recorded_runs: int, seconds: float, target: Path | None) -> None:
    """Count verdicts on the same artifact and on a slower one."""
    check_outputs([(target, RESULTS)], files_of(artifact))
    plain = BenchOptions(artifact, seconds=seconds, threads=1, profile=False)
    beside = replace(plain, against_engine=artifact)
    counts: dict[str, Counter[str]] = {}
    loads = []
    began = time.perf_counter()
    with scratch_folder() as scratch:
        for number in range(max(runs, recorded_runs)):
            loads.append(psutil.getloadavg()[0])
            kinds = {"side by side": beside} if number < runs else {}
            if number < recorded_runs:
                kinds["recorded"] = replace(plain, against=recorded(plain, scratch, str(number)))
            for kind, options in kinds.items():
                for slow in (False, True):
                    name = f"{kind}, {f'{100 * EXTRA:.0f} % slower' if slow else 'identical'}"
                    counts.setdefault(name, Counter())[outcome(options, slow)] += 1
            click.echo(f"{number + 1}: {json.dumps(counts)}", err=True)
    table = Table(title=f"runs of up to {seconds:g} s, one thread")
    for column in ("", "pass", "undecided", "fail"):
        table.add_column(column)
    for name, found in counts.items():
        table.add_row(name, *(str(found[key]) for key in ("pass", "undecided", "fail")))
    Console(width=100).print(table)
    results: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "load": {"least": min(loads), "median": statistics.median(loads), "most": max(loads)},
        "minutes": round((time.perf_counter() - began) / 60, 1),
        "seconds": seconds,
        "verdicts": counts,
    }
    Console().print_json(data=results)
    if target is not None:
        write_output(target, json.dumps(results, indent=1) + "\n", RESULTS)


if __name__ == "__main__":
    sys.exit(command.run(main, "interrupted; nothing was written"))
