"""What the commands share: options of an export, delivery of results, interrupts."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from calibration.methods import METHODS
from export.build.options import BACKENDS, IO_DTYPES, PRECISIONS, ExportOptions
from export.build.quantization_options import DEFAULT_METHOD, MODES, split_options
from export.engine.op_library import PROVIDERS
from export.engine.range import Range
from madtp.console.command import PATH, allow_outside, errors_console, output_console
from madtp.console.interrupts import raise_interrupts
from madtp.errors import OutputError

FAILED = 1  # a check failed
BACKEND = "auto: onnxruntime for .onnx; for .plan tensorrt if installed with a GPU, else tensorrt-rtx."
PRECISION = "int8: for both; fp8: plans for compute capability 8.9 or newer, and files to try it."
CALIB = "int8, fp8: samples or a data set to measure ranges on, or a table from `python -m calibration ranges`."
MODE = "int8: measure ranges while the model runs (dynamic; .onnx only) or beforehand (static)."
KEEP = "What to leave in float32, from `python -m calibration sensitivity` (default: a recipe for the task)."
KEEP_MARGIN = "Also keep tokens this far below the threshold, as a fraction of the mean |score|."
LIBRARY = "Op library: its kernels in place of function bodies (none)  [default: the installed one, where it fits]"
PROVIDER = "Execution provider of ONNX Runtime."
CAPACITY = "Rows of layers from `python -m calibration capacity`; packed only (default: plans measure on samples)."
PLUGINS = "none: standard ONNX ops only. auto: plugins in a plan, custom ops with function bodies in an .onnx file."


def execution_options(command: Any) -> Any:
    """Options of how ONNX Runtime runs an artifact, for every command that runs one."""
    for option in (
        click.option("--provider", type=click.Choice(PROVIDERS), default="cpu", show_default=True, help=PROVIDER),
        click.option("--library", metavar="PATH|none", help=LIBRARY),
    ):
        command = option(command)
    return command


def export_options(command: Any) -> Any:
    """The options that an export and its preflight share."""
    for option in reversed(
        (
            click.option("--ckpt", type=PATH, help="Trained MADTP checkpoint (.pt, .pth). Required."),
            click.option("--engine", type=PATH, help="Output: out.plan (TensorRT) or out.onnx. Required."),
            click.option("--config", type=PATH, help="JSON file of model sizes (default: inferred)."),
            click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True, help=BACKEND),
            # What ExportOptions knows and refuses, with its reason, is not offered.
            click.option(
                "--precision", metavar=f"[{'|'.join(PRECISIONS)}]", default="fp32", show_default=True, help=PRECISION
            ),
            click.option(
                "--io-dtype",
                type=click.Choice(IO_DTYPES),
                default="fp32",
                show_default=True,
                help="Inputs and outputs; fp16 with --precision fp16.",
            ),
            click.option(
                "--layout",
                metavar="[packed|dynamic]",
                help="packed: requests do not depend on each other (default; see docs). dynamic: the published rule.",
            ),
            click.option("--batch", metavar="MIN:OPT:MAX", help="Requests per call (default: 1:1:8)."),
            click.option("--text", metavar="MIN:OPT:MAX", help="Tokens per text (default: 2:24:64; vqa 2:12:64)."),
            click.option("--beams", type=int, help="Maximum beams or candidates (default: vqa 128, caption 8)."),
            click.option(
                "--max-length", type=int, help="Maximum ids of an answer or caption (default: vqa 17, caption 41)."
            ),
            click.option("--temperature", type=float, help="Default pruning temperature (default: the checkpoint's)."),
            click.option(
                "--keep-margin", type=float, default=0.0, show_default=True, metavar="FRACTION", help=KEEP_MARGIN
            ),
            click.option("--plugins", metavar="auto|none|PATH", default="auto", show_default=True, help=PLUGINS),
            click.option("--embed-plugins", is_flag=True, help="Embed the plugin library in the plan."),
            click.option(
                "--tokens",
                type=PATH,
                metavar="JSON",
                help="Token statistics from `python -m calibration tokens`; plans only (default: measured on samples).",
            ),
            click.option("--capacity", type=PATH, metavar="JSON", help=CAPACITY),
            click.option("--calib", type=PATH, metavar="DIR|JSON", help=CALIB),
            click.option(
                "--calib-method",
                type=click.Choice(METHODS),
                help=f"Which ranges of the table to take (default: {DEFAULT_METHOD}).",
            ),
            click.option("--synthetic", is_flag=True, help="Take ranges of random data, for a trial."),
            click.option("--quantization", type=click.Choice(MODES), default="auto", show_default=True, help=MODE),
            click.option("--keep", type=PATH, metavar="JSON", help=KEEP),
            click.option("--quantize-scores", is_flag=True, help="Quantize alignment scores too."),
            click.option(
                "--samples", type=PATH, metavar="DIR", help="Samples to validate on (default: the demo's samples)."
            ),
            allow_outside,
        )
    ):
        command = option(command)
    return command


def parse_options(given: dict[str, Any]) -> ExportOptions:
    """Options of the command line, ranges parsed; missing required ones are usage errors."""
    for name in ("ckpt", "engine"):
        if given[name] is None:
            raise click.UsageError(f"Missing option '--{name}'.")
    ranges = {
        name: None if given[name] is None else Range.parse(given[name], f"--{name}") for name in ("batch", "text")
    }
    renamed = {"checkpoint": given["ckpt"], **{key: value for key, value in given.items() if key != "ckpt"}}
    return ExportOptions(**split_options({**renamed, **ranges}))


def deliver(show: Callable[[], None], writers: Iterable[tuple[Path | None, Callable[[Path], None]]]) -> None:
    """Show a result and then write it: a full disk costs no result that was measured, a closed pipe no file.

    Args:
        show: prints all of it.
        writers: functions that write files, each with its path; None was not asked for.

    Raises:
        OutputError: a file could not be written; all others were.
    """
    written: list[Path] = []
    failures: list[OutputError] = []
    try:
        with suppress(KeyboardInterrupt):  # the work has ended; only its report is cut short
            show()
    finally:
        for path, write in writers:
            if path is not None:
                try:
                    write(path)
                    written.append(path)
                except OutputError as error:
                    failures.append(error)
        with suppress(OSError, SystemExit):  # rich's answer to a closed pipe
            for path in written:
                output_console().print(f"wrote {path}", highlight=False, soft_wrap=True)
        if failures:
            raise failures[0]


__all__ = [
    "FAILED",
    "PATH",
    "deliver",
    "errors_console",
    "execution_options",
    "export_options",
    "output_console",
    "parse_options",
    "raise_interrupts",
]
