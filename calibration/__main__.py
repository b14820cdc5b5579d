"""`python -m calibration`, or `madtp-calibration`: statistics of data for an export."""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import click
from rich.table import Table
from torch import Tensor

import madtp
from calibration.tokens import TOKENS, Source, TokenStatistics, collect_resumable
from madtp.console.command import PATH, allow_outside, errors_console, output_console, run, version_option
from madtp.console.interrupts import raise_interrupts
from madtp.console.printing import say
from madtp.console.progress import ConsoleProgress
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
    """Measure on data what an export can use.

    \b
    python -m calibration tokens --ckpt x.pt --data DIR -o tokens.json
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
    inputs = [ckpt, config, data / INDEX, find_vocabulary(ckpt, data)]
    check_outputs([(output, TOKENS)], inputs)
    with ConsoleProgress(errors_console(), doing="reading the checkpoint") as progress:
        _tokens(ckpt, data, output, config, temperature, allow_outside, progress)
    say(f"wrote {output}")


def _tokens(
    ckpt: Path,
    data: Path,
    output: Path,
    config: Path | None,
    temperature: float | None,
    allow_outside: bool,
    progress: ConsoleProgress,
) -> None:
    model = madtp.load(ckpt, config)
    tau = model.temperature if temperature is None else temperature
    if not 0 < tau <= MAX_TEMPERATURE:
        raise InputError(
            f"the temperature is {tau:g}",
            "At zero the model is dense: every layer keeps all tokens.",
            f"Give --temperature between 0 and {MAX_TEMPERATURE:g}.",
        )
    entries = read_index(data, model.task)
    processor = sample_processor(ckpt, data, model.config)
    index_sha256 = sha256(data / INDEX)
    source = Source(sha256(ckpt), model.task, tau, f"{len(entries)} samples of '{data}'", index_sha256)
    read = partial(_inputs, data, processor=processor, config=model.config, allow_outside=allow_outside)
    requests = [partial(read, number, entry) for number, entry in enumerate(entries)]

    def on_sample(done: int) -> None:
        progress.count("counting tokens of samples", done, len(requests))

    def show(statistics: TokenStatistics) -> None:
        progress.stop()
        output_console().print(statistics_table(statistics))

    collect_resumable(model.config, parts_of(model), requests, source, output, on_sample, show)


def _inputs(
    folder: Path, number: int, entry: object, processor: Processor, config: Config, allow_outside: bool
) -> Mapping[str, Tensor]:
    sample = read_sample(folder, number, entry, config.task, allow_outside=allow_outside)
    try:
        return collate([prepare_sample(sample, processor, config)], config)
    except InputError as error:
        raise InputError(error.what, f"{error.why} It is entry {number} of '{folder / INDEX}'.", error.fix) from error


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


def main() -> int:
    """Run the command line; returns the exit status."""
    raise_interrupts()
    return run(cli, "interrupted: what was counted is kept beside the output; run the same command to go on")


if __name__ == "__main__":
    sys.exit(main())
