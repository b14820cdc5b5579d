"""`python -m export evaluate`: a whole data set through an artifact, and its published score."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from export.cli.common import PATH, errors_console, execution_options, output_console, raise_interrupts
from export.engine.op_library import Provider
from export.errors import OptionError
from madtp.console.command import allow_outside
from madtp.console.progress import ConsoleProgress
from madtp.data.datasets import SPLITS, TASKS

MISSING_SHOWN = 3


@click.command(short_help="Run a data set through an artifact.")
@click.argument("artifact", type=PATH)
@click.option(
    "--data", type=PATH, required=True, metavar="DIR", help="Folder of the annotation files and images (docs/data.md)."
)
@click.option("--task", type=click.Choice(TASKS), help="Refuse an artifact of another task.")
@click.option(
    "--split", type=click.Choice((*SPLITS, "dev")), help="Data set split (default: test if present, else val)."
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    default=Path("results.json"),
    show_default=True,
    help="JSON file of scores and answers to write.",
)
@click.option(
    "--batch",
    type=int,
    help="Requests per batch, as published evaluations run them (default: 1, or OPT of a packed artifact).",
)
@click.option("--temperature", type=float, help="Pruning temperature; 0 is dense (default: the manifest's).")
@click.option("--generate", is_flag=True, help="vqa: generate answers instead of ranking those of answer_list.json.")
@click.option("--k-test", type=int, help="retrieval: candidates matched per image and per text (default: 256).")
@click.option("--limit", type=int, help="Maximum number of items, from the first (default: all).")
@click.option("--against", type=PATH, metavar="JSON", help="Compare the answers with this result, e.g. of fp32.")
@click.option("--skip-missing", is_flag=True, help="Skip items whose images are missing.")
@allow_outside
@click.option("--vocab", type=PATH, help="The checkpoint's vocab.txt (default: the artifact's own).")
@click.option("--threads", type=int, help="Threads of ONNX Runtime (default: its own choice).")
@execution_options
def command(
    artifact: Path,
    data: Path,
    task: str | None,
    split: str | None,
    output: Path,
    against: Path | None,
    skip_missing: bool,
    allow_outside: bool,
    vocab: Path | None,
    threads: int | None,
    library: str | None,
    provider: Provider,
    **chosen: Any,
) -> None:
    """Run a data set through ARTIFACT (out.json, out.onnx or out.plan) and write its score and every answer.

    An interrupted run resumes when the same command is run again.

    \b
    Exit status: 0 done, 2 invalid input, an unsuitable machine, or interrupted.
    """
    from export.artifact.outputs import files_of
    from export.artifact.reader import open_manifest
    from export.evaluate.against import Earlier
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
    check_outputs([(output, RESULTS)], [vocab, against, *files_of(artifact)])
    earlier = None if against is None else Earlier.read(against)
    if task not in (None, manifest.task):
        raise OptionError(
            f"--task is {task}, and the artifact is of {manifest.task}", "", "Leave --task out, or name another."
        )
    try:
        with ConsoleProgress(errors_console(), doing="reading the data set") as progress:
            dataset = read_dataset(manifest.task, data, split, skip_missing=skip_missing, allow_outside=allow_outside)
            progress.doing("opening the artifact")
            with Session(path, vocabulary=vocab, threads=threads, provider=provider, library=library) as session:

                def show(results: dict[str, Any]) -> None:
                    progress.stop()
                    shown = output_console()
                    with suppress(KeyboardInterrupt):  # the work has ended; only its report is cut short
                        shown.print(results_table(results, f"{data} ({dataset.split}) through {path}"))
                        for line in closing_lines(results):
                            shown.print(line, soft_wrap=True)

                evaluate(session, dataset, output, options, progress.count, show, earlier)
    except KeyboardInterrupt as error:
        part = part_path(output)
        kept = (
            f"what was done is in '{part}'; run the same command to go on" if part.exists() else "nothing was done yet"
        )
        raise click.Abort(f"interrupted: {kept}") from error
    output_console().print(f"wrote {output}", soft_wrap=True)


def results_table(results: dict[str, Any], title: str) -> Table:
    """Scores, the data that they are of, and mean token counts."""
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in (results["metrics"] or {}).items():
        table.add_row(name.replace("_", " "), f"{value:.2f}")
    partial = " (the first of the data set)" if results["partial"] else ""
    table.add_row("items", f"{results['items']}{partial}")
    table.add_row("precision", results["precision"])
    table.add_row("temperature", f"{results['identity']['temperature']:g}")
    for encoder, layers in results["mean_tokens"].items():
        table.add_row(f"{encoder} tokens after the first and last layer", f"{layers[0]:.1f}, {layers[-1]:.1f}")
    table.add_row("texts cut at the published limits", str(results["texts_cut"]))
    table.add_row("images missing", str(len(results["missing_images"])))
    table.add_row("seconds", f"{results['seconds']:.1f}")
    return table


def closing_lines(results: dict[str, Any]) -> list[str]:
    """One line each: how it ran, missing scores, differences from the published evaluation, skipped items."""
    from export.runtime.buckets import OverflowCount
    from export.runtime.execution import execution_words

    lines = [] if results["execution"] is None else [f"runs {execution_words(results['execution'])}"]
    if results["overflows"] is not None:
        lines.append(str(OverflowCount(**results["overflows"])))
    if results["unscored"] is not None:
        lines.append(f"unscored: {results['unscored']}")
    used = results["identity"]["options"]
    batches = {name: size for name, size in used.items() if name.endswith("batch")}
    sizes = ", ".join(f"{name.replace('_', ' ')} {size}" for name, size in batches.items())
    if results["batching"] == "per-request" and max(batches.values()) == 1:
        lines.append("batch 1: no answer depends on another item (--batch N runs N per batch)")
    elif results["batching"] == "per-request":
        lines.append(
            f"packed batches ({sizes}): every item keeps the tokens that it keeps alone "
            "(published batches need an export with --layout dynamic)"
        )
    else:
        lines.append(f"batched ({sizes}): an answer can depend on the others in its batch")
    if results["batching"] != "per-request" and used.get("match_batch", 0) < used.get("k_test", 0):
        lines.append(
            f"{used['match_batch']} candidates were matched per batch, the artifact's maximum; the published "
            f"evaluation matches all {used['k_test']} in one batch (export with --batch 1:N:{used['k_test']})"
        )
    if "against" in results:
        against = results["against"]
        tokens = ", ".join(f"{encoder} {more:+.1f} %" for encoder, more in against["tokens_percent"].items())
        beside = f"'{against['path']}'" + (f" ({against['precision']})" if against["precision"] else "")
        lines.append(f"against {beside}: {against['equal']} of {against['answers']} answers equal; tokens {tokens}")
    missing = results["missing_images"]
    if missing:
        more = ", ..." if len(missing) > MISSING_SHOWN else ""
        lines.append(f"skipped, images missing: {', '.join(missing[:MISSING_SHOWN])}{more}")
    return lines
