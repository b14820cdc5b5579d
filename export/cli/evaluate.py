"""`python -m export evaluate`: a whole data set through an artifact, and its published score."""

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from export.cli.common import PATH, errors_console, output_console, raise_interrupts
from export.errors import OptionError
from madtp.console.command import WRONG_INPUT, allow_outside
from madtp.console.heartbeat import Heartbeat, draws
from madtp.console.printing import say
from madtp.data.datasets import SPLITS, TASKS

MISSING_SHOWN = 3


@click.command(short_help="Run a data set through an artifact.")
@click.argument("artifact", type=PATH)
@click.option("--data", type=PATH, required=True, metavar="DIR", help="Annotation files and images (docs/data.md).")
@click.option("--task", type=click.Choice(TASKS), help="To be sure: the artifact's.")
@click.option("--split", type=click.Choice((*SPLITS, "dev")), help="test if it is there, else val.")
@click.option("-o", "--output", type=PATH, default=Path("results.json"), show_default=True, help="File to write.")
@click.option("--batch", type=int, help="Requests that run together, as published; else one by one.")
@click.option("--temperature", type=float, help="Pruning temperature; the manifest's. 0 is dense.")
@click.option("--generate", is_flag=True, help="vqa: write answers instead of choosing from answer_list.json.")
@click.option("--k-test", type=int, help="retrieval: candidates of each image and text to match; 256.")
@click.option("--limit", type=int, help="Only the first so many items.")
@click.option("--skip-missing", is_flag=True, help="Leave out what needs an image that is not there.")
@allow_outside
@click.option("--vocab", type=PATH, help="The checkpoint's vocab.txt, where the artifact came without.")
@click.option("--threads", type=int, help="Of ONNX Runtime; its own choice.")
@click.pass_context
def command(
    context: click.Context,
    artifact: Path,
    data: Path,
    task: str | None,
    split: str | None,
    output: Path,
    skip_missing: bool,
    allow_outside: bool,
    vocab: Path | None,
    threads: int | None,
    **chosen: Any,
) -> None:
    """Run a data set through ARTIFACT (out.json, out.onnx or out.plan): its score, and every answer.

    Cut short, the same command goes on where it stopped.

    \b
    Exit status: 0 done, 2 the input or the machine is at fault, or it was interrupted.
    """
    from export.artifact.outputs import files_of
    from export.artifact.reader import open_manifest
    from export.evaluate.evaluation import EvaluateOptions
    from export.evaluate.run import RESULTS, evaluate, part_path
    from export.session.session import Session
    from madtp.data.datasets import read_dataset
    from madtp.files.outputs import check_outputs

    raise_interrupts()
    options = EvaluateOptions(**chosen)
    if threads is not None and threads < 1:
        raise OptionError(f"--threads is {threads}", "", "Use 1 or more.")
    path, manifest = open_manifest(artifact)
    check_outputs([(output, RESULTS)], [vocab, *files_of(artifact)])
    if task not in (None, manifest.task):
        raise OptionError(
            f"--task is {task}, and the artifact is of {manifest.task}", "", "Leave --task out, or name another."
        )
    try:
        console = errors_console()
        with Heartbeat(console, "reading the data set") as heartbeat:
            dataset = read_dataset(manifest.task, data, split, skip_missing=skip_missing, allow_outside=allow_outside)
            heartbeat.doing("opening the artifact")
            with Session(path, vocabulary=vocab, threads=threads) as session, _Progress(console, heartbeat) as progress:

                def show(results: dict[str, Any]) -> None:
                    progress.stop()
                    shown = output_console()
                    with suppress(KeyboardInterrupt):  # the work has ended; only its report is cut short
                        shown.print(results_table(results, f"{data} ({dataset.split}) through {path}"))
                        for line in closing_lines(results):
                            shown.print(line, soft_wrap=True)

                evaluate(session, dataset, output, options, progress.report, show)
    except KeyboardInterrupt:
        part = part_path(output)
        kept = (
            f"what was done is in '{part}'; run the same command to go on" if part.exists() else "nothing was done yet"
        )
        say(f"interrupted: {kept}", err=True)
        context.exit(WRONG_INPUT)
    output_console().print(f"wrote {output}", soft_wrap=True)


def results_table(results: dict[str, Any], title: str) -> Table:
    """Metrics, what went in, tokens that stayed."""
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in (results["metrics"] or {}).items():
        table.add_row(name.replace("_", " "), f"{value:.2f}")
    partial = ", the first ones of the data set" if results["partial"] else ""
    table.add_row("items", f"{results['items']}{partial}")
    table.add_row("temperature", f"{results['identity']['temperature']:g}")
    for encoder, layers in results["mean_tokens"].items():
        table.add_row(f"{encoder} tokens after the first and last layer", f"{layers[0]:.1f}, {layers[-1]:.1f}")
    table.add_row("texts cut at the published limits", str(results["texts_cut"]))
    table.add_row("images missing", str(len(results["missing_images"])))
    table.add_row("seconds", f"{results['seconds']:.1f}")
    return table


def closing_lines(results: dict[str, Any]) -> list[str]:
    """One line each: why there is no score, what differs from the published evaluation, what was left out."""
    lines = []
    if results["unscored"] is not None:
        lines.append(f"unscored: {results['unscored']}")
    used = results["identity"]["options"]
    if results["batching"] == "per-request":
        lines.append("every item ran on its own: no answer depends on another item (--batch N runs N together)")
    else:
        sizes = ", ".join(f"{name.replace('_', ' ')} {size}" for name, size in used.items() if name.endswith("batch"))
        lines.append(f"items ran together ({sizes}): an answer can depend on the others of its batch")
    if results["batching"] != "per-request" and used.get("match_batch", 0) < used.get("k_test", 0):
        lines.append(
            f"{used['match_batch']} candidates were matched at a time, as many as the artifact takes; the published "
            f"evaluation matches all {used['k_test']} together (export with --batch 1:N:{used['k_test']})"
        )
    missing = results["missing_images"]
    if missing:
        more = ", ..." if len(missing) > MISSING_SHOWN else ""
        lines.append(f"left out, their images are missing: {', '.join(missing[:MISSING_SHOWN])}{more}")
    return lines


class _Progress:
    """A bar for each stage on a terminal, a line for every tenth elsewhere. Use as a context."""

    def __init__(self, console: Console, heartbeat: Heartbeat) -> None:
        self._console, self._heartbeat = console, heartbeat
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not draws(console),
        )
        self._stage, self._told = "", 0

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away: something is to be printed."""
        self._bar.stop()

    def report(self, stage: str, done: int, total: int) -> None:
        """Tell what is done of a stage."""
        if stage != self._stage:  # a run that goes on begins its stage in the middle
            self._task = self._bar.add_task(stage, total=total, completed=done)
            self._stage, self._told = stage, 10 * done // total
        self._bar.update(self._task, completed=done)
        self._heartbeat.doing(f"{stage}: {done} of {total}" if done < total else f"after {stage}: the results")
        if not draws(self._console) and 10 * done // total > self._told:
            self._told = 10 * done // total
            self._console.print(f"{10 * self._told:3d} %  {stage}: {done} of {total}", highlight=False, markup=False)
            self._heartbeat.told()
