"""`python -m export validate`: hold an artifact to its checkpoint."""

from pathlib import Path

import click

from export.commands.common import FAILED, PATH, errors_console, output_console, raise_interrupts
from export.errors import OptionError


@click.command()
@click.option("--engine", type=PATH, required=True, help="The artifact; its manifest lies beside it.")
@click.option("--ckpt", type=PATH, required=True, help="The checkpoint that it was made from.")
@click.option("--config", type=PATH, help="JSON of model sizes that win over inferred ones.")
@click.option("--samples", type=PATH, metavar="DIR", help="Samples to compare on; the demo's.")
@click.option("--data", type=PATH, metavar="DIR", help="A data set; not read by this version.")
@click.option("--synthetic", is_flag=True, help="Compare on random pixels and ids instead of real data.")
@click.pass_context
def command(
    context: click.Context,
    engine: Path,
    ckpt: Path,
    config: Path | None,
    samples: Path | None,
    data: Path | None,
    synthetic: bool,
) -> None:
    """Hold an artifact to its checkpoint: answers, tokens, latency. Exit 1 where they differ."""
    from export.report import ConsoleProgress, validation_table
    from export.validate import validate_artifact

    raise_interrupts()
    if data is not None:
        raise OptionError("--data is not available", "This version reads no data sets.", "Use --samples DIR.")
    if samples is not None and synthetic:
        raise OptionError("--samples and --synthetic exclude each other", fix="Give one of them.")
    with ConsoleProgress(errors_console(), stages=3) as progress:
        result = validate_artifact(engine, ckpt, config, samples, synthetic, progress)
    output = output_console()
    output.print(validation_table(result, f"{engine} against {ckpt}"))
    for failure in (failure for parity in result.parity for failure in parity.failures):
        output.print(failure)
    if result.validated == "onnx":
        output.print("the plan was not run: no GPU here can execute it; ONNX traced from the checkpoint was compared")
    context.exit(0 if result.passed else FAILED)
