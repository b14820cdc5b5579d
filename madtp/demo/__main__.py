"""`python -m madtp.demo`, or `madtp-demo`: train a demonstration's model and show what pruning costs and saves."""

import shutil
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import NamedTuple

import click
import torch
from rich.table import Table

from madtp.console.command import PATH, errors_console, output_console, run, version_option
from madtp.console.interrupts import raise_interrupts
from madtp.console.printing import say
from madtp.console.progress import ConsoleProgress
from madtp.demo import CHECKPOINT, retrieval, vocab_path
from madtp.demo.data import held_out_samples
from madtp.demo.evaluate import Evaluation, evaluate
from madtp.demo.output import check_folder, staged, write_samples
from madtp.demo.retrieval import evaluate as retrieval_evaluate
from madtp.demo.retrieval import train as retrieval_train
from madtp.demo.retrieval.data import held_out
from madtp.demo.retrieval.data import held_out_samples as held_out_pairs
from madtp.demo.train import Recipe, save, train

MISSED = 1  # the result is not as good as promised
THREADS = 2  # another number adds up in another order, and so trains other weights
EVALUATED = 1000  # held-out samples
EVALUATED_SHORT = 16
SAMPLES = 16  # written for `python -m export --samples`
LEAST_ACCURACY = 0.90
LEAST_PRUNED = 0.40  # of the dense model's GFLOPs
MOST_LOST = 0.02  # accuracy, against the dense model


@click.command()
@version_option
@click.option(
    "--task", type=click.Choice(("nlvr", "retrieval")), default="nlvr", show_default=True, help="Demo to train."
)
@click.option("--out", type=PATH, metavar="DIR", help="Output folder (default: out/demo, or out/demo-retrieval).")
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Train only N steps per stage, as a smoke test.")
@click.pass_context
def cli(context: click.Context, task: str, out: Path | None, steps: int | None) -> None:
    """Train a small BLIP model with MADTP on real images.

    nlvr judges statements about pairs of handwritten digits, retrieval finds captions of crops of photographs. Writes
    the checkpoint, vocab.txt and samples/ (held-out samples for the exporter) into DIR.

    \b
    Exit status: 0 written, 1 written but less accurate or less pruned than promised, 2 invalid input or interrupted.
    """
    started = time.monotonic()
    torch.set_num_threads(THREADS)
    run_task = run_nlvr if task == "nlvr" else run_retrieval
    out = out or Path("out/demo" if task == "nlvr" else "out/demo-retrieval")
    checkpoint, problems = run_task(out, steps)
    say(f"{time.monotonic() - started:.0f} s; wrote {out / checkpoint}, vocab.txt and samples/")
    for problem in problems:
        say(f"missed: {problem}")
    context.exit(MISSED if problems else 0)


class Result(NamedTuple):
    """What a task came to: the file name of its checkpoint, and the promises that it missed."""

    checkpoint: str
    missed: list[str]


def run_nlvr(out: Path, steps: int | None) -> Result:
    """Train, evaluate and write the model that judges statements; a run of `steps` steps a stage promises nothing."""
    check_folder(out, CHECKPOINT, vocab_path())
    recipe = Recipe() if steps is None else Recipe().shortened(steps)
    samples = held_out_samples(EVALUATED if steps is None else EVALUATED_SHORT)
    with staged(out) as stage, ConsoleProgress(errors_console(), doing="reading the data") as progress:
        advance = counter(progress, recipe.steps + 2 * len(samples))
        model = train(recipe, advance)
        dense, pruned = (
            evaluate(model, vocab_path(), samples, temperature, lambda: advance("evaluating"))
            for temperature in (0.0, recipe.deployed_temperature)
        )
        progress.stop()
        output_console().print(results_table(dense, pruned, recipe.deployed_temperature, len(samples)))
        save(model, stage / CHECKPOINT)
        shutil.copyfile(vocab_path(), stage / "vocab.txt")
        write_samples(samples[:SAMPLES], stage / "samples")
    return Result(CHECKPOINT, missed_promises(dense, pruned) if steps is None else [])


def run_retrieval(out: Path, steps: int | None) -> Result:
    """Train, evaluate and write the model that finds captions; a run of `steps` steps promises nothing."""
    recipe = retrieval_train.RetrievalRecipe() if steps is None else retrieval_train.RetrievalRecipe().shortened(steps)
    kept = held_out(retrieval.EVALUATED if steps is None else 1)
    vocabulary = retrieval.vocab_path()
    check_folder(out, retrieval.CHECKPOINT, vocabulary)
    with staged(out) as stage, ConsoleProgress(errors_console(), doing="reading the data") as progress:
        advance = counter(progress, recipe.steps + 2 * len(kept.pictures))
        model = retrieval_train.train(recipe, advance)
        dense, pruned = (
            retrieval_evaluate.evaluate(model, vocabulary, kept, temperature, lambda: advance("evaluating"))
            for temperature in (0.0, recipe.deployed_temperature)
        )
        progress.stop()
        output_console().print(retrieval_evaluate.results_table(dense, pruned, recipe.deployed_temperature, kept))
        save(model, stage / retrieval.CHECKPOINT)
        shutil.copyfile(vocabulary, stage / "vocab.txt")
        write_samples(held_out_pairs(SAMPLES), stage / "samples", vocabulary)
    missed = retrieval_evaluate.missed_promises(dense, pruned) if steps is None else []
    return Result(retrieval.CHECKPOINT, missed)


def counter(progress: ConsoleProgress, total: int) -> Callable[[str], None]:
    """A function that counts one of `total` steps and says what it was."""
    done = count(1)
    return lambda what: progress.count(what, next(done), total)


def results_table(dense: Evaluation, pruned: Evaluation, temperature: float, samples: int) -> Table:
    """Both evaluations side by side."""
    table = Table(title=f"{samples} statements about held-out digits, one request at a time")
    for heading in ("", "accuracy", "GFLOPs", "pruned", "tokens per image, by layer", "tokens per sentence"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, result in (("dense", dense), (f"temperature {temperature:g}", pruned)):
        table.add_row(
            name,
            f"{result.accuracy:.1%}",
            f"{result.gflops:.4f}",
            f"{1 - result.gflops / dense.gflops:.1%}",
            " ".join(f"{count:.1f}" for count in result.vision_tokens),
            " ".join(f"{count:.1f}" for count in result.text_tokens),
        )
    return table


def missed_promises(dense: Evaluation, pruned: Evaluation) -> list[str]:
    """What a full run should reach and these results do not."""
    share = 1 - pruned.gflops / dense.gflops
    lost = dense.accuracy - pruned.accuracy
    problems = []
    if min(dense.accuracy, pruned.accuracy) < LEAST_ACCURACY:
        reached = f"accuracy dense {dense.accuracy:.1%}, pruned {pruned.accuracy:.1%}"
        problems.append(f"{reached}, minimum {LEAST_ACCURACY:.0%}")
    if share < LEAST_PRUNED:
        problems.append(f"{share:.1%} of the GFLOPs pruned, minimum {LEAST_PRUNED:.0%}")
    if lost > MOST_LOST:
        problems.append(f"{lost:.1%} of accuracy lost by pruning, maximum {MOST_LOST:.0%}")
    return problems


def main() -> int:
    """Run the command line; returns the exit status."""
    raise_interrupts()
    return run(cli, "interrupted: nothing was written, earlier outputs are as they were")


if __name__ == "__main__":
    sys.exit(main())
