"""`python -m export evaluate`: a whole data set through an artifact, and its published score."""

from pathlib import Path
from types import TracebackType
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from export.commands.common import PATH, errors_console, output_console, raise_interrupts
from export.errors import OptionError
from madtp.command import WRONG_INPUT, allow_outside
from madtp.datasets import SPLITS, TASKS
from madtp.printing import say

MISSING_SHOWN = 3


@click.command()
@click.argument("manifest", type=PATH)
@click.option("--data", type=PATH, required=True, metavar="DIR", help="Annotation files and images (docs/data.md).")
@click.option("--task", type=click.Choice(TASKS), help="To be sure: the artifact's.")
@click.option("--split", type=click.Choice((*SPLITS, "dev")), help="test if it is there, else val.")
@click.option("-o", "--output", type=PATH, default=Path("results.json"), show_default=True, help="File to write.")
@click.option("--batch", type=int, help="Requests that run together; the artifact's usual number.")
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
    manifest: Path,
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
    """Run a data set through the artifact of MANIFEST (out.json): its score, and every answer.

    Cut short, the same command goes on where it stopped.
    """
    from export.evaluate import evaluate, part_path
    from export.evaluation import EvaluateOptions
    from export.manifest import read_manifest
    from export.session import Session, find_manifest
    from madtp.datasets import read_dataset

    raise_interrupts()
    options = EvaluateOptions(**chosen)
    if threads is not None and threads < 1:
        raise OptionError(f"--threads is {threads}", "", "Use 1 or more.")
    path = find_manifest(manifest)
    content = read_manifest(path)
    if task not in (None, content["task"]):
        raise OptionError(
            f"--task is {task}, and the artifact is of {content['task']}", "", "Leave --task out, or name another."
        )
    try:
        dataset = read_dataset(content["task"], data, split, skip_missing=skip_missing, allow_outside=allow_outside)
        artifacts = [path.parent / part["artifact"] for part in content["parts"]]
        _check_output(output, [path, *artifacts, *(source.path for source in dataset.sources)])
        with Session(path, vocabulary=vocab, threads=threads) as session, _Progress(errors_console()) as progress:
            results = evaluate(session, dataset, output, options, progress.report)
    except KeyboardInterrupt:
        part = part_path(output)
        kept = (
            f"what was done is in '{part}'; run the same command to go on" if part.exists() else "nothing was done yet"
        )
        say(f"interrupted: {kept}", err=True)
        context.exit(WRONG_INPUT)
    console = output_console()
    console.print(results_table(results, f"{data} ({dataset.split}) through {path}"))
    for line in closing_lines(results, output):
        console.print(line, soft_wrap=True)


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


def closing_lines(results: dict[str, Any], output: Path) -> list[str]:
    """One line each: why there is no score, what differs from the published evaluation, what was written."""
    lines = []
    if results["unscored"] is not None:
        lines.append(f"no score: {results['unscored']}")
    used = results["identity"]["options"]
    if used.get("match_batch", 0) < used.get("k_test", 0):
        lines.append(
            f"{used['match_batch']} candidates were matched at a time, as many as the artifact takes; the published "
            f"evaluation matches all {used['k_test']} together (export with --batch 1:N:{used['k_test']})"
        )
    missing = results["missing_images"]
    if missing:
        more = ", ..." if len(missing) > MISSING_SHOWN else ""
        lines.append(f"left out, their images are missing: {', '.join(missing[:MISSING_SHOWN])}{more}")
    return [*lines, f"wrote {output}"]


class _Progress:
    """A bar for each stage on a terminal, a line for every tenth elsewhere. Use as a context."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._stage, self._told = "", 0

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def report(self, stage: str, done: int, total: int) -> None:
        """Tell what is done of a stage."""
        if stage != self._stage:  # a run that goes on begins its stage in the middle
            self._task = self._bar.add_task(stage, total=total, completed=done)
            self._stage, self._told = stage, 10 * done // total
        self._bar.update(self._task, completed=done)
        if not self._console.is_terminal and 10 * done // total > self._told:
            self._told = 10 * done // total
            self._console.print(f"{10 * self._told:3d} %  {stage}: {done} of {total}", highlight=False, markup=False)


def _check_output(output: Path, inputs: list[Path]) -> None:
    for path in inputs:
        if output.resolve() == path.resolve():
            raise OptionError(f"-o names '{path}', which is read", "It would be overwritten.", "Name another file.")
