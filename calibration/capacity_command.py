"""`python -m calibration capacity`: rows for every layer of a batch."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from calibration.capacities import Capacities, check_held_out, choose_capacities, dense_rows
from calibration.capacity_file import CAPACITY, CapacityFile, write_capacity
from calibration.counts import PARTIAL, RequestCounts, collect_counts
from calibration.requests import DataChoice
from calibration.setup import Setup, all_data_options, checkpoint_options, inputs_of, prepare, with_options
from calibration.tables import capacity_table
from calibration.tokens import partial_path
from madtp.console.command import PATH, allow_outside, errors_console, output_console
from madtp.console.printing import say
from madtp.console.progress import ConsoleProgress
from madtp.errors import CapacityError, InputError
from madtp.files.outputs import check_outputs
from madtp.models.config import BlipConfig, ClipConfig
from madtp.models.parts import parts_of

LONGEST_TEXT = {"nlvr": 64, "vqa": 64, "retrieval": 35}  # ids, as of an export
MOST_BATCH = 1024
LEAST_OVERFLOW = 1e-9


@click.command()
@with_options(*checkpoint_options, *all_data_options)
@click.option("--batch", "batches", default="1,8,32", show_default=True, metavar="B,B...", help="Requests of a batch.")
@click.option(
    "--overflow",
    type=float,
    default=1e-3,
    show_default=True,
    metavar="P",
    help="Probability that a batch needs more rows than that in any layer.",
)
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.25,
    show_default=True,
    metavar="SHARE",
    help="Share of the requests that check the capacities and do not choose them.",
)
@click.option(
    "--text",
    type=click.IntRange(min=2),
    metavar="N",
    help="Most ids of a text, the MAX of the export's --text (default: the same as there).",
)
@click.option(
    "-o", "--output", type=PATH, default=Path("capacity.json"), show_default=True, help="File of capacities to write."
)
@allow_outside
def capacity(
    ckpt: Path,
    config: Path | None,
    temperature: float | None,
    batches: str,
    overflow: float,
    held_out: float,
    text: int | None,
    output: Path,
    **choice: Any,
) -> None:
    """Choose how many rows every layer gets for a batch whose requests lie end to end.

    From what real requests keep, each alone: the distribution of the sum over a batch. Some requests are held out, and
    check the prediction. An interrupted run resumes with the same command.

    \b
    Exit status: 0 written, 2 invalid input, an unsuitable machine, or interrupted.
    """
    sizes = parse_batches(batches)
    if not LEAST_OVERFLOW <= overflow < 1:
        raise InputError(
            f"--overflow is {overflow:g}",
            "It is the probability that a batch does not fit, and runs again with more room.",
            f"Give {LEAST_OVERFLOW:g} or more, and less than 1.",
        )
    chosen = DataChoice(**choice)
    check_outputs([(output, CAPACITY), (partial_path(output), PARTIAL)], inputs_of(ckpt, config, chosen))
    with ConsoleProgress(errors_console(), doing="reading the checkpoint") as progress:
        setup = prepare(ckpt, config, temperature, chosen)
        model, source = setup.model, setup.source
        longest = longest_text(model.config, text)
        checked = check_held_out(len(setup.requests.reads), held_out, source.data)
        requests = setup.requests.inputs(model.config)
        on_sample = partial(progress.count, "counting tokens of samples", total=len(requests))
        counts = collect_counts(model.config, parts_of(model), requests, source, output, on_sample)
        check_texts(counts, longest)
        found = choose(setup, counts, sizes, overflow, checked, longest, progress)
        progress.stop()
        try:
            output_console().print(capacity_table(found, source))
            for doubt in found.doubts:
                say(doubt)
        finally:  # a closed pipe is no reason not to write
            write_capacity(CapacityFile(source, found), output)
    partial_path(output).unlink(missing_ok=True)
    say(f"wrote {output}")


def choose(
    setup: Setup,
    counts: RequestCounts,
    batches: list[int],
    overflow: float,
    held_out: int,
    text: int,
    progress: ConsoleProgress,
) -> Capacities:
    """`choose_capacities` for a model."""
    parts = {name: list(part.encoders) for name, part in parts_of(setup.model).items() if part.encoders}
    dense = dense_rows(setup.model.config, counts.sequences, text)
    on_batch = partial(progress.count, "choosing capacities of batch sizes", total=len(batches))
    return choose_capacities(counts, parts, dense, batches, overflow, held_out, on_batch)


def parse_batches(text: str) -> list[int]:
    """Ascending batch sizes of "1,8,32".

    Raises:
        InputError: anything else.
    """
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or not 1 <= sizes[0] <= sizes[-1] <= MOST_BATCH:
        raise InputError(
            f"--batch is '{text}'", f"It has to be batch sizes of 1 to {MOST_BATCH}.", "Use e.g. --batch 1,8,32."
        )
    return sizes


def longest_text(config: BlipConfig | ClipConfig, given: int | None) -> int:
    """Most ids of a text, 0 where texts have one length or are not read.

    Raises:
        InputError: more than the model has positions, or given where there is no choice.
    """
    if isinstance(config, ClipConfig) or config.task == "caption":
        if given is not None:
            raise InputError(
                f"--text {given} does not apply to {config.task}",
                "Its texts have one length." if isinstance(config, ClipConfig) else "It reads no text.",
                "Omit --text.",
            )
        return 0
    if given is not None and given > config.max_position:
        raise InputError(
            f"--text is {given}",
            f"The model has {config.max_position} positions.",
            f"Use at most {config.max_position}.",
        )
    return given or min(LONGEST_TEXT[config.task], config.max_position)


def check_texts(counts: RequestCounts, longest: int) -> None:
    """Refuse data with longer texts than capacities are for.

    Raises:
        CapacityError: naming the length.
    """
    if 0 < longest < counts.longest_text:
        raise CapacityError(
            f"the data have a text of {counts.longest_text} ids, and the capacities are for {longest}",
            "An engine for texts of that length would refuse it.",
            f"Give --text {counts.longest_text}, here and to the export.",
        )
