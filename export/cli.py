"""The command line: `python -m export`."""

import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from export.errors import OptionError
from export.options import BACKENDS, LAYOUTS, PRECISIONS, ExportOptions, Range
from madtp.errors import MadtpError

FAILED = 1  # a check failed
WRONG_INPUT = 2  # the user's input or machine
WIDTH = 118  # of tables where there is no terminal to ask

_PATH = click.Path(path_type=Path)


def export_options(command: Any) -> Any:
    """The options that an export and its preflight share."""
    for option in reversed(
        (
            click.option("--ckpt", type=_PATH, help="Trained MADTP checkpoint (.pt, .pth)."),
            click.option("--engine", type=_PATH, help="Output: out.plan (TensorRT) or out.onnx (ONNX Runtime)."),
            click.option("--config", type=_PATH, help="JSON of model sizes that win over inferred ones."),
            click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True),
            click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True),
            click.option("--layout", type=click.Choice(LAYOUTS), default="dynamic", show_default=True),
            click.option("--batch", metavar="MIN:OPT:MAX", help="Requests a call; default 1:1:8."),
            click.option("--text", metavar="MIN:OPT:MAX", help="Tokens a sentence; default 2:24:64."),
            click.option("--temperature", type=float, help="Default pruning temperature; the checkpoint's."),
            click.option("--plugins", metavar="auto|none|PATH", default="auto", show_default=True),
            click.option("--embed-plugins", is_flag=True, help="Put the plugin library into the plan."),
            click.option("--tokens", type=_PATH, metavar="JSON", help="Of python -m calibration tokens."),
            click.option("--calib", type=_PATH, metavar="DIR", help="Calibration data for int8 and fp8."),
            click.option("--samples", type=_PATH, metavar="DIR", help="Samples to check the result on; the demo's."),
        )
    ):
        command = option(command)
    return command


@click.group(invoke_without_command=True)
@export_options
@click.pass_context
def cli(context: click.Context, /, **given: Any) -> None:
    """Export a trained MADTP checkpoint to an engine, and prove that it gives the same answers.

    \b
    python -m export --ckpt x.pt --engine out.plan
    """
    if context.invoked_subcommand is None:
        context.exit(_export(_options(given)))
    elif given["ckpt"] or given["engine"]:
        raise click.UsageError(f"options go after the command: {context.invoked_subcommand} --ckpt ... --engine ...")


@cli.command()
@export_options
def check(**given: Any) -> None:
    """Preflight of an export: read and check everything, write nothing."""
    from export.pipeline import prepare
    from export.report import preflight_table

    _raise_interrupts()
    _output().print(preflight_table(prepare(_options(given))))


@cli.command()
@click.option("--engine", type=_PATH, required=True, help="The artifact; its manifest lies beside it.")
@click.option("--ckpt", type=_PATH, required=True, help="The checkpoint that it was made from.")
@click.option("--config", type=_PATH, help="JSON of model sizes that win over inferred ones.")
@click.option("--samples", type=_PATH, metavar="DIR", help="Samples to compare on; the demo's.")
@click.option("--data", type=_PATH, metavar="DIR", help="A data set; not read by this version.")
@click.option("--synthetic", is_flag=True, help="Compare on random pixels and ids instead of real data.")
@click.pass_context
def validate(
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

    _raise_interrupts()
    if data is not None:
        raise OptionError("--data is not available", "This version reads no data sets.", "Use --samples DIR.")
    if samples is not None and synthetic:
        raise OptionError("--samples and --synthetic exclude each other", fix="Give one of them.")
    with ConsoleProgress(_errors(), stages=3) as progress:
        result = validate_artifact(engine, ckpt, config, samples, synthetic, progress)
    output = _output()
    output.print(validation_table(result, f"{engine} against {ckpt}"))
    for failure in (failure for parity in result.parity for failure in parity.failures):
        output.print(failure)
    if result.validated == "onnx":
        output.print("the plan was not run: no GPU here can execute it; ONNX traced from the checkpoint was compared")
    context.exit(0 if result.passed else FAILED)


def _options(given: dict[str, Any]) -> ExportOptions:
    """Options of the command line, ranges parsed; missing required ones are usage errors."""
    for name in ("ckpt", "engine"):
        if given[name] is None:
            raise click.UsageError(f"Missing option '--{name}'.")
    ranges = {
        name: None if given[name] is None else Range.parse(given[name], f"--{name}") for name in ("batch", "text")
    }
    renamed = {"checkpoint": given["ckpt"], **{key: value for key, value in given.items() if key != "ckpt"}}
    return ExportOptions(**{**renamed, **ranges})


def _export(options: ExportOptions) -> int:
    from export.pipeline import export, prepare
    from export.report import EXPORT_STAGES, ConsoleProgress, closing_lines, validation_table

    _raise_interrupts()
    with ConsoleProgress(_errors(), EXPORT_STAGES[options.engine.suffix] + 1) as progress:
        progress.stage("reading checkpoint and samples")
        prepared = prepare(options)
        result = export(prepared, progress)
    output = _output()
    with suppress(KeyboardInterrupt):  # the export has ended; only its report is cut short
        output.print(validation_table(result.validation, f"{options.checkpoint.name} -> {options.engine.name}"))
        for line in closing_lines(result):
            output.print(line, soft_wrap=True)
    return 0 if result.manifest is not None else FAILED


def _output() -> Console:
    console = Console(markup=False)  # a path may hold brackets
    return console if console.is_terminal else Console(width=WIDTH, markup=False)


def _errors() -> Console:
    return Console(stderr=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _raise_interrupts() -> None:
    """From here on, Ctrl-C and SIGTERM unwind what was begun; until then `export/__main__.py` answers them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def main() -> int:
    """Run the command line; returns the exit status."""
    try:
        status = cli.main(standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show()
        return WRONG_INPUT
    except MadtpError as error:
        sys.stderr.write(f"error: {error}\n")
        return WRONG_INPUT
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("interrupted: nothing was written, earlier outputs are as they were\n")
        return WRONG_INPUT
