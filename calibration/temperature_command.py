"""`python -m calibration temperature`: the temperature that meets a budget."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from calibration.budget import Budget, choose_budget
from calibration.latency import QUICK_ROUNDS, REQUESTS, ROUNDS, Latency, measure_latencies
from calibration.ranges import check_count
from calibration.requests import DataChoice
from calibration.runs import DENSE, PARTIAL, Run, Runs
from calibration.setup import Setup, checkpoint_only_options, inputs_of, prepare, real_data_options, with_options
from calibration.tables import points_table
from calibration.temperature_file import TEMPERATURE, OperatingPoint, TemperatureFile, write_temperature
from calibration.temperature_search import (
    LEAST_TEMPERATURE,
    check_reachable,
    grid,
    mean_interval,
    rises,
    search,
)
from calibration.tokens import partial_path
from madtp.console.command import PATH, allow_outside, errors_console, output_console
from madtp.console.printing import say
from madtp.console.progress import ConsoleProgress
from madtp.data.items import spread
from madtp.data.samples import collate
from madtp.files.outputs import check_outputs
from madtp.models.config import MAX_TEMPERATURE

START = 1.0  # where a checkpoint names no temperature
NEAR = 0.25  # of the tolerance: near enough to stop
NOISY = 0.5  # the same of latencies, which cannot be told so exactly
ATTEMPTS = 3  # at a latency, on a machine whose speed changes
ENDS = (LEAST_TEMPERATURE, MAX_TEMPERATURE)


@click.command()
@with_options(*checkpoint_only_options, *real_data_options)
@click.option("--gflops", type=float, metavar="G", help="Budget: mean GFLOPs of a request.")
@click.option("--reduction", type=float, metavar="R", help="Budget: share of the dense model's GFLOPs to save.")
@click.option(
    "--latency", metavar="TIME", help="Budget: median latency of a request in torch on this machine, e.g. 3ms or 0.5s."
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 0.5, min_open=True),
    default=0.02,
    show_default=True,
    metavar="SHARE",
    help="Share of the budget by which it may be missed.",
)
@click.option("-o", "--output", type=PATH, default=Path("temperature.json"), show_default=True, help="File to write.")
@allow_outside
def temperature(
    ckpt: Path,
    config: Path | None,
    gflops: float | None,
    reduction: float | None,
    latency: str | None,
    tolerance: float,
    output: Path,
    **choice: Any,
) -> None:
    """Find the pruning temperature that meets a budget, and show what others cost and are worth.

    The model runs over the samples at each temperature that is tried. GFLOPs are counted, latencies are those of torch
    on this machine. An interrupted run resumes with the same command.

    \b
    Exit status: 0 written, 2 invalid input, an unsuitable machine, or interrupted.
    """
    budget = choose_budget(gflops, reduction, latency)
    chosen = DataChoice(**choice)
    check_outputs([(output, TEMPERATURE), (partial_path(output), PARTIAL)], inputs_of(ckpt, config, chosen))
    with ConsoleProgress(errors_console(), doing="reading the checkpoint") as progress:
        setup = prepare(ckpt, config, None, chosen, otherwise=START)
        check_count(len(setup.requests.reads), setup.source.data)
        found = find(setup, budget, tolerance, output, progress)
        progress.stop()
        try:
            output_console().print(points_table(found))
            show(found)
        finally:  # a closed pipe is no reason not to write
            write_temperature(found, output)
    partial_path(output).unlink(missing_ok=True)
    say(f"wrote {output}")


def find(setup: Setup, budget: Budget, tolerance: float, output: Path, progress: ConsoleProgress) -> TemperatureFile:
    """Search, measure latencies of all points together, and say what is in doubt.

    Raises:
        MadtpError: the budget cannot be reached; a sample cannot be read; partial results are of something else.
    """
    model, start = setup.model, setup.source.temperature
    runs = Runs(model, setup.requests.reads, setup.source, output, progress.count)
    inputs = [collate([read()], model.config) for read in spread(setup.requests.reads, REQUESTS)]
    on_round = partial(progress.count, "measuring latencies")
    measure = partial(measure_latencies, model, inputs, on_round=on_round)
    if budget.kind == "latency":
        best, final = by_latency(measure, runs, budget, tolerance, start)
    else:
        best = by_gflops(runs, budget, tolerance, start)
        final = measure([run.temperature for run in runs.runs], ROUNDS)
    points = tuple(_point(run, runs, final[run.temperature]) for run in runs.runs)
    source = replace(setup.source, temperature=best)
    found = TemperatureFile(source, budget, tolerance, len(setup.requests.reads), torch.get_num_threads(), points, ())
    return replace(found, doubts=tuple(doubts(found, runs.runs)))


def by_gflops(runs: Runs, budget: Budget, tolerance: float, start: float) -> float:
    """The temperature whose mean GFLOPs are nearest to the budget."""
    dense, pruned = runs.at(DENSE).mean, [runs.at(end).mean for end in ENDS]
    check_reachable(budget, tolerance, dense, pruned)
    best = search(lambda temperature: runs.at(temperature).mean, budget.cost(dense), NEAR * tolerance, start)
    for shown in (*grid(start), best):
        runs.at(shown)
    return best


def by_latency(
    measure: Callable[[list[float], int], dict[float, Latency]],
    runs: Runs,
    budget: Budget,
    tolerance: float,
    start: float,
) -> tuple[float, dict[float, Latency]]:
    """The temperature whose latency is nearest to the budget, and latencies of all runs, measured together.

    The search knows latencies as multiples of the dense model's in the same rounds. What the dense model takes changes
    with what else the machine does, so it goes on with the latest measurement where that misses the budget.
    """
    ratios: dict[float, float] = {}

    def learn(measured: Mapping[float, Latency]) -> float:
        dense = measured[DENSE].median
        ratios.update({temperature: found.median / dense for temperature, found in measured.items()})
        return dense

    def ratio(temperature: float) -> float:
        if temperature not in ratios:
            learn(measure([DENSE, temperature], QUICK_ROUNDS))
        return ratios[temperature]

    dense, target = learn(measure([DENSE, *ENDS], QUICK_ROUNDS)), budget.cost(0.0)
    check_reachable(budget, tolerance, dense, [dense * ratios[end] for end in ENDS])
    for shown in (DENSE, *ENDS, *grid(start)):
        runs.at(shown)
    for _ in range(ATTEMPTS):
        dense = learn(measure([run.temperature for run in runs.runs], QUICK_ROUNDS))
        check_reachable(budget, tolerance, dense, [dense * ratios[end] for end in ENDS])
        best = search(ratio, target / dense, NOISY * tolerance, start)
        runs.at(best)
        final = measure([run.temperature for run in runs.runs], ROUNDS)
        if abs(final[best].median - target) <= tolerance * target:
            break
    return best, final


def _point(run: Run, runs: Runs, latency: Latency) -> OperatingPoint:
    dense = runs.at(DENSE)
    equal = [one == two for one, two in zip(dense.decisions, run.decisions, strict=True)]
    known = [(index, label) for index, label in enumerate(runs.labels) if label is not None]
    accuracy = sum(run.decisions[index] == label for index, label in known) / len(known) if known else None
    return OperatingPoint(
        run.temperature,
        mean_interval(run.gflops),
        1 - run.mean / dense.mean,
        latency,
        sum(equal) / len(equal),
        accuracy,
    )


def doubts(found: TemperatureFile, runs: list[Run]) -> list[str]:
    """What is not as it should be, or not shown by the data."""
    said, point, budget = [], found.found, found.budget
    target = budget.cost(found.points[0].gflops.mean)
    allowed, unit = found.tolerance * target, budget.unit
    cost = point.latency.median if budget.kind == "latency" else point.gflops.mean
    if abs(cost - target) > allowed:
        said.append(
            f"the nearest to {target:.4g} {unit} is {cost:.4g} {unit}, which is not within {found.tolerance:.3g} of it"
            + (": the machine is not quiet enough" if budget.kind == "latency" else ": there the curve is steep")
        )
    if budget.kind == "latency":
        if point.latency.high - point.latency.low > 2 * allowed:
            said.append(
                f"rounds of the measurement lie between {point.latency.low:.4g} and {point.latency.high:.4g} ms, wider "
                f"than the tolerance of {allowed:.2g} ms"
            )
    elif point.gflops.half_width > allowed:
        needed = round(found.samples * (point.gflops.half_width / allowed) ** 2)
        said.append(
            f"{found.samples} samples know the mean to {point.gflops.half_width:.2g} GFLOPs at 95 % confidence, less "
            f"well than the tolerance of {allowed:.2g}; about {needed:,} would do"
        )
    for rise in rises(runs):
        said.append(
            f"GFLOPs do not fall but rise by {rise.share:.2%} from temperature {rise.temperature:g} to {rise.to:g}: "
            "other temperatures may cost the same"
        )
    return said


def show(found: TemperatureFile) -> None:
    """Say in words what the table shows."""
    point = found.found
    gflops, latency = point.gflops, point.latency
    say(
        f"temperature {point.temperature:g} for the budget of {found.budget}: {gflops.mean:.4g} GFLOPs a request "
        f"(95 %: {gflops.low:.4g} to {gflops.high:.4g}), {100 * point.reduction:.3g} % fewer than dense"
    )
    say(
        f"latencies are of torch on the CPU of this machine, {found.threads} threads; "
        f"{latency.median:.4g} ms there (rounds: {latency.low:.4g} to {latency.high:.4g})"
    )
    for doubt in found.doubts:
        say(doubt)
