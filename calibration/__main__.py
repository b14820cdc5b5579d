"""`python -m calibration`, or `madtp-calibration`: statistics of data for an export."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from calibration.capacity_command import capacity
from calibration.keep import KEEP, PRECISIONS, KeepFile, write_keep
from calibration.methods import METHODS
from calibration.ranges import RANGES, RangeTable, collect_ranges_resumable
from calibration.requests import DataChoice
from calibration.sensitivity import Goal, Proposal, rank_and_propose
from calibration.setup import checkpoint_options, data_options, inputs_of, prepare, with_options
from calibration.tables import places_table, proposal_table, ranges_table, statistics_table, threshold_table
from calibration.temperature_command import temperature
from calibration.tokens import TOKENS, TokenStatistics, collect_resumable
from madtp.console.command import PATH, allow_outside, errors_console, output_console, run, version_option
from madtp.console.interrupts import raise_interrupts
from madtp.console.printing import say
from madtp.console.progress import ConsoleProgress
from madtp.files.outputs import check_outputs
from madtp.models.parts import parts_of


@click.group()
@version_option
def cli() -> None:
    """Measure on data what an export can use.

    \b
    python -m calibration tokens --ckpt x.pt --data DIR -o tokens.json
    python -m calibration ranges --ckpt x.pt --data DIR -o ranges.json
    python -m calibration sensitivity --ckpt x.pt --data DIR -o keep.json
    python -m calibration capacity --ckpt x.pt --data DIR -o capacity.json
    python -m calibration temperature --ckpt x.pt --data DIR --reduction 0.5 -o temperature.json
    """


cli.add_command(capacity)
cli.add_command(temperature)


@cli.command()
@click.option("--ckpt", type=PATH, required=True, help="Trained MADTP checkpoint (.pt, .pth).")
@click.option("--data", type=PATH, required=True, metavar="DIR", help="Folder of samples, or of a data set.")
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


@cli.command()
@with_options(*checkpoint_options, *data_options)
@click.option("--precision", type=click.Choice(PRECISIONS), default="int8", show_default=True, help="What to try.")
@click.option("--ranges", "table", type=PATH, help="Range table: static activations (fp8 needs one).")
@click.option(
    "--method", type=click.Choice(METHODS), default="percentile", show_default=True, help="Ranges of the table to take."
)
@click.option(
    "--agreement",
    type=click.FloatRange(0, 1),
    default=Goal.agreement,
    show_default=True,
    metavar="SHARE",
    help="Least share of decisions equal to float32's.",
)
@click.option(
    "--jaccard",
    type=click.FloatRange(0, 1),
    default=Goal.jaccard,
    show_default=True,
    metavar="SHARE",
    help="Least mean |kept by both| / |kept by either|.",
)
@click.option(
    "--probe",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    metavar="N",
    help="Samples on which a place is tried alone.",
)
@click.option("--quantize-scores", is_flag=True, help="Try the products that score tokens, too.")
@click.option("--no-smooth", is_flag=True, help="Dynamic INT8 of the model as it is, without making channels alike.")
@click.option("-o", "--output", type=PATH, default=Path("keep.json"), show_default=True, help="Keep file to write.")
@allow_outside
def sensitivity(
    ckpt: Path,
    config: Path | None,
    temperature: float | None,
    precision: str,
    table: Path | None,
    method: str,
    agreement: float,
    jaccard: float,
    probe: int,
    quantize_scores: bool,
    no_smooth: bool,
    output: Path,
    **choice: Any,
) -> None:
    """Rank layers by the damage that a low precision does to answers and kept tokens, and propose which to keep.

    Weight products are computed in torch as ONNX Runtime does: INT8 with activations by what each tensor holds, or
    with --ranges by a table. The keep file is for `python -m export --keep`.

    \b
    Exit status: 0 written, 2 invalid input, an unsuitable machine, or interrupted.
    """
    chosen = DataChoice(**choice)
    check_outputs([(output, KEEP)], [*inputs_of(ckpt, config, chosen), table])
    with ConsoleProgress(errors_console(), doing="reading the checkpoint") as progress:
        setup = prepare(ckpt, config, temperature, chosen)
        low_precision = setup.low_precision(precision, table, method, smoothed=table is None and not no_smooth)
        trials = setup.trials(low_precision, probe, quantize_scores, progress.count)
        goal = Goal(agreement, jaccard)
        try:
            proposal = rank_and_propose(trials, goal)
        except KeyboardInterrupt as error:
            raise click.Abort("interrupted: nothing was written") from error
    activations = f"static, {method}" if table is not None else "dynamic" if no_smooth else "dynamic, smoothed"
    evidence = {
        "temperature": setup.source.temperature,
        "data": setup.source.data,
        "data_sha256": setup.source.data_sha256,
        "activations": activations,
        "jaccard": jaccard,
        **proposal.to_json(),
    }
    show_proposal(proposal, f"{precision}, activations {activations}", min(probe, len(trials.inputs)))
    source = setup.source
    write_keep(KeepFile(source.checkpoint_sha256, source.task, precision, agreement, proposal.keep, evidence), output)
    say(f"wrote {output}")


def show_proposal(proposal: Proposal, what: str, probe: int) -> None:
    """Print all tables."""
    console = output_console()
    console.print(places_table(proposal.layers, f"whole layers in {what}, {probe} samples"))
    console.print(places_table(proposal.places, f"places in {what}, {probe} samples"))
    samples = proposal.found.samples
    console.print(threshold_table(proposal, f"scores and threshold, everything in {what}, {samples} samples"))
    console.print(proposal_table(proposal, f"{what}, {samples} samples"))
    names = ", ".join(proposal.kept_places())
    say(f"keep in float32: {names or 'nothing'}")
    if not proposal.reached:
        say("Keeping everything is not enough for what was asked.")


def main() -> int:
    """Run the command line; returns the exit status."""
    raise_interrupts()
    return run(cli, "interrupted: what was counted is kept beside the output; run the same command to go on")


if __name__ == "__main__":
    sys.exit(main())
