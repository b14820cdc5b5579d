"""`python -m calibration`, or `madtp-calibration`: what is learned from data before an export."""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

import madtp
from calibration.tokens import TOKENS, Source, TokenStatistics, collect_resumable
from madtp.checkpoint.loading import Model
from madtp.console.command import PATH, allow_outside, errors_console, output_console, run, version_option
from madtp.console.heartbeat import Heartbeat, draws
from madtp.console.printing import say
from madtp.data.samples import (
    INDEX,
    Config,
    Processor,
    collate,
    find_vocabulary,
    prepare_sample,
    read_index,
    read_sample,
    sample_processor,
)
from madtp.errors import InputError
from madtp.files.inputs import sha256
from madtp.files.outputs import check_outputs
from madtp.models.config import MAX_TEMPERATURE
from madtp.models.parts import parts_of


@click.group()
@version_option
def cli() -> None:
    """Learn from data what an export needs.

    \b
    python -m calibration tokens --ckpt x.pt --data DIR -o tokens.json
    """


@cli.command()
@click.option("--ckpt", type=PATH, required=True, help="Trained MADTP checkpoint (.pt, .pth).")
@click.option("--data", type=PATH, required=True, metavar="DIR", help="Folder of samples (samples.json, images).")
@click.option("-o", "--output", type=PATH, default=Path("tokens.json"), show_default=True, help="File to write.")
@click.option("--config", type=PATH, help="JSON of model sizes that win over inferred ones.")
@click.option("--temperature", type=float, help="Pruning temperature; the checkpoint's.")
@allow_outside
def tokens(
    ckpt: Path, data: Path, output: Path, config: Path | None, temperature: float | None, allow_outside: bool
) -> None:
    """Count the tokens that every layer keeps, over real samples. Cut short, it goes on where it stopped.

    \b
    Exit status: 0 written, 2 the input or the machine is at fault, or it was interrupted.
    """
    inputs = [ckpt, config, data / INDEX, find_vocabulary(ckpt, data)]
    check_outputs([(output, TOKENS)], inputs)
    with Heartbeat(errors_console(), "reading the checkpoint") as heartbeat:
        _tokens(ckpt, data, output, config, temperature, allow_outside, heartbeat)
    say(f"wrote {output}")


def _tokens(
    ckpt: Path,
    data: Path,
    output: Path,
    config: Path | None,
    temperature: float | None,
    allow_outside: bool,
    heartbeat: Heartbeat,
) -> None:
    model = madtp.load(ckpt, config)
    tau = model.temperature if temperature is None else temperature
    if not 0 < tau <= MAX_TEMPERATURE:
        raise InputError(
            f"the temperature is {tau:g}",
            "At zero nothing is pruned, so there is nothing to count.",
            f"Give --temperature between 0 and {MAX_TEMPERATURE:g}.",
        )
    entries = read_index(data, model.task)
    processor = sample_processor(ckpt, data, model.config)
    index_sha256 = sha256(data / INDEX)
    source = Source(sha256(ckpt), model.task, tau, f"{len(entries)} samples of '{data}'", index_sha256)
    read = partial(_inputs, data, processor=processor, config=model.config, allow_outside=allow_outside)
    requests = [partial(read, number, entry) for number, entry in enumerate(entries)]
    _collect(model, requests, source, output, heartbeat)


def _inputs(
    folder: Path, number: int, entry: object, processor: Processor, config: Config, allow_outside: bool
) -> Mapping[str, Tensor]:
    sample = read_sample(folder, number, entry, config.task, allow_outside=allow_outside)
    try:
        return collate([prepare_sample(sample, processor, config)], config)
    except InputError as error:
        raise InputError(error.what, f"{error.why} It is entry {number} of '{folder / INDEX}'.", error.fix) from error


def _collect(
    model: Model,
    requests: Sequence[Callable[[], Mapping[str, Tensor]]],
    source: Source,
    output: Path,
    heartbeat: Heartbeat,
) -> None:
    """Collect and show behind a bar on a terminal, a line for every tenth elsewhere."""
    console = errors_console()
    columns = (
        TextColumn("counting tokens"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    total = len(requests)
    heartbeat.doing(f"counting tokens of {total} samples")
    with Progress(*columns, console=console, disable=not draws(console)) as bar:
        task = bar.add_task("", total=total)
        told = 0

        def on_sample(done: int) -> None:
            nonlocal told
            bar.update(task, completed=done)
            heartbeat.doing(f"counting tokens: {done} of {total} samples")
            if not draws(console) and 10 * done // total > told:
                told = 10 * done // total
                console.print(f"{10 * told:3d} %  {done} of {total} samples", highlight=False)
                heartbeat.told()

        def show(statistics: TokenStatistics) -> None:
            bar.stop()
            output_console().print(statistics_table(statistics))

        collect_resumable(model.config, parts_of(model), requests, source, output, on_sample, show)


def statistics_table(statistics: TokenStatistics) -> Table:
    """Mean and quantiles of every layer."""
    table = Table(
        title=f"tokens kept of one request, {statistics.samples} samples, temperature {statistics.source.temperature:g}"
    )
    for heading in ("encoder", "layer", "mean", "5 %", "median", "95 %"):
        table.add_column(heading, justify="left" if heading == "encoder" else "right")
    for encoder, entries in statistics.to_json()["encoders"].items():
        for entry in entries:
            shares = (str(entry["quantiles"][share]) for share in ("0.05", "0.5", "0.95"))
            table.add_row(encoder, str(entry["layer"]), f"{entry['mean']:.1f}", *shares)
    return table


def main() -> int:
    """Run the command line; returns the exit status."""
    return run(cli, "interrupted: what was counted is kept beside the output; run the same command to go on")


if __name__ == "__main__":
    sys.exit(main())
