"""`python -m calibration`, or `madtp-calibration`: statistics of data for an export."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.table import Table

import madtp
from calibration.ranges import METHODS, RANGES, RangeTable, collect_ranges_resumable
from calibration.requests import LIMIT, DataChoice, Requests, choose_requests
from calibration.tokens import TOKENS, Source, TokenStatistics, collect_resumable
from madtp.console.command import PATH, allow_outside, errors_console, output_console, run, version_option
from madtp.console.interrupts import raise_interrupts
from madtp.console.printing import say
from madtp.console.progress import ConsoleProgress
from madtp.data.samples import INDEX, find_vocabulary
from madtp.errors import InputError
from madtp.files.inputs import sha256
from madtp.files.outputs import check_outputs
from madtp.models.config import MAX_TEMPERATURE
from madtp.models.parts import parts_of
from madtp.models.weight_products import weight_products

checkpoint_options = (
    click.option("--ckpt", type=PATH, required=True, help="Trained MADTP checkpoint (.pt, .pth)."),
    click.option("--config", type=PATH, help="JSON of model sizes that override inferred ones."),
    click.option("--temperature", type=float, help="Pruning temperature (default: the checkpoint's)."),
)
data_options = (
    click.option(
        "--data", type=PATH, metavar="DIR", help="Folder of samples (samples.json and images), or of a data set."
    ),
    click.option("--split", metavar="NAME", help="Split of a data set (default: test if present, else val)."),
    click.option(
        "--limit", type=int, metavar="N", default=LIMIT, show_default=True, help="Use at most N, evenly spaced."
    ),
)


def with_options(*options: Any) -> Callable[[Any], Any]:
    """Several options at once, in the order in which they are listed in the help."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.group()
@version_option
def cli() -> None:
    """Measure on data what an export can use.

    \b
    python -m calibration tokens --ckpt x.pt --data DIR -o tokens.json
    python -m calibration ranges --ckpt x.pt --data DIR -o ranges.json
    """


@cli.command()
@click.option("--ckpt", type=PATH, required=True, help="Trained MADTP checkpoint (.pt, .pth).")
@click.option("--data", type=PATH, required=True, metavar="DIR", help="Folder of samples (samples.json and images).")
@click.option(
    "-o", "--output", type=PATH, default=Path("tokens.json"), show_default=True, help="Token statistics to write."
)
@click.option("--config", type=PATH, help="JSON of model sizes that override inferred ones.")
@click.option("--temperature", type=float, help="Pruning temperature (default: the checkpoint's).")
@allow_outside
def tokens(
    ckpt: Path, data: Path, output: Path, config: Path | None, temperature: float | None, allow_outside: bool
) -> None:
    """Count the tokens that every layer keeps on real samples. An interrupted run resumes with the same command.

    \b
    Exit status: 0 written, 2 invalid input, an unsuitable machine, or interrupted.
    """
    choice = DataChoice(data, limit=None, allow_outside=allow_outside)
    check_outputs([(output, TOKENS)], inputs_of(ckpt, config, choice))
    with ConsoleProgress(errors_console(), doing="reading the checkpoint") as progress:
        setup = prepare(ckpt, config, temperature, choice)

        def show(statistics: TokenStatistics) -> None:
            progress.stop()
            output_console().print(statistics_table(statistics))

        requests = setup.requests.inputs(setup.model.config)
        on_sample = partial(progress.count, "counting tokens of samples", total=len(requests))
        collect_resumable(setup.model.config, parts_of(setup.model), requests, setup.source, output, on_sample, show)
    say(f"wrote {output}")


@cli.command()
@with_options(*checkpoint_options, *data_options)
@click.option("--synthetic", is_flag=True, help="Use random data instead; the file says so.")
@click.option("-o", "--output", type=PATH, default=Path("ranges.json"), show_default=True, help="Range table to write.")
@allow_outside
def ranges(
    ckpt: Path,
    config: Path | None,
    temperature: float | None,
    output: Path,
    **choice: Any,
) -> None:
    """Measure between what values the input of every weight product lies, for static INT8 and FP8.

    The pruned model runs, so they are ranges of the tokens that survive. An interrupted run resumes with the same
    command.

    \b
    Exit status: 0 written, 2 invalid input, an unsuitable machine, or interrupted.
    """
    chosen = DataChoice(**choice)
    check_outputs([(output, RANGES)], inputs_of(ckpt, config, chosen))
    with ConsoleProgress(errors_console(), doing="reading the checkpoint") as progress:
        setup = prepare(ckpt, config, temperature, chosen)

        def show(table: RangeTable) -> None:
            progress.stop()
            output_console().print(ranges_table(table, setup.model))

        requests = setup.requests.inputs(setup.model.config)
        on_sample = partial(progress.count, "measuring ranges over samples", total=len(requests))
        collect_ranges_resumable(
            setup.model,
            requests,
            setup.source,
            output,
            synthetic=chosen.synthetic,
            on_sample=on_sample,
            show=show,
        )
    say(f"wrote {output}")


@dataclass(frozen=True)
class Setup:
    """A model, and what to run it over."""

    model: Any
    requests: Requests
    source: Source


def inputs_of(checkpoint: Path, config: Path | None, choice: DataChoice) -> list[Path | None]:
    """Files that a run reads, as far as options name them."""
    index = None if choice.data is None else choice.data / INDEX
    return [checkpoint, config, index, find_vocabulary(checkpoint, choice.data)]


def prepare(checkpoint: Path, config: Path | None, temperature: float | None, choice: DataChoice) -> Setup:
    """Read the checkpoint, and find the samples.

    Raises:
        MadtpError: one of them cannot be used, or the model would not prune.
    """
    model = madtp.load(checkpoint, config)
    tau = model.temperature if temperature is None else temperature
    if not 0 < tau <= MAX_TEMPERATURE:
        raise InputError(
            f"the temperature is {tau:g}",
            "At zero the model is dense: every layer keeps all tokens.",
            f"Give --temperature between 0 and {MAX_TEMPERATURE:g}.",
        )
    requests = choose_requests(choice, checkpoint, model.config)
    return Setup(model, requests, Source(sha256(checkpoint), model.task, tau, requests.origin, requests.index_sha256))


def statistics_table(statistics: TokenStatistics) -> Table:
    """Mean and quantiles of every layer."""
    table = Table(
        title=f"kept tokens per request, {statistics.samples} samples, temperature {statistics.source.temperature:g}"
    )
    for heading in ("encoder", "layer", "mean", "p5", "p50", "p95"):
        table.add_column(heading, justify="left" if heading == "encoder" else "right")
    for encoder, entries in statistics.to_json()["encoders"].items():
        for entry in entries:
            shares = (str(entry["quantiles"][share]) for share in ("0.05", "0.5", "0.95"))
            table.add_row(encoder, str(entry["layer"]), f"{entry['mean']:.1f}", *shares)
    return table


def ranges_table(table: RangeTable, model: Any) -> Table:
    """Ranges of every place: the widest of its products."""
    places: dict[str, list[str]] = {}
    for name, product in weight_products(model).items():
        if name in table.ranges:
            places.setdefault(product.place, []).append(name)
    kind = "random samples" if table.synthetic else "samples"
    shown = Table(
        title=f"ranges of activations, {table.samples} {kind}, temperature {table.source.temperature:g}",
    )
    for heading in ("input of", *METHODS):
        shown.add_column(heading, justify="left" if heading == "input of" else "right")
    for place, names in places.items():
        cells = []
        for method in METHODS:
            found = [table.ranges[name][method] for name in names]
            cells.append(f"{min(low for low, _ in found):.3g} to {max(high for _, high in found):.3g}")
        shown.add_row(place, *cells)
    return shown


def main() -> int:
    """Run the command line; returns the exit status."""
    raise_interrupts()
    return run(cli, "interrupted: what was counted is kept beside the output; run the same command to go on")


if __name__ == "__main__":
    sys.exit(main())
