"""What the commands share: options of an export, where output goes, how an interrupt is taken."""

import signal
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from export.build.options import BACKENDS, ExportOptions
from export.engine.range import Range
from madtp.console.command import PATH, allow_outside, errors_console, output_console
from madtp.errors import OutputError

FAILED = 1  # a check failed
BACKEND = "auto: onnxruntime for .onnx; for .plan tensorrt where that and a GPU are here, else tensorrt-rtx."
PLUGINS = "none: standard ONNX ops alone. auto: a plan uses our plugins, an .onnx holds custom ops and their bodies."
AGAIN = 0.05  # seconds until an interrupt that was lost is taken again


def export_options(command: Any) -> Any:
    """The options that an export and its preflight share."""
    for option in reversed(
        (
            click.option("--ckpt", type=PATH, help="Trained MADTP checkpoint (.pt, .pth)."),
            click.option("--engine", type=PATH, help="Output: out.plan (TensorRT) or out.onnx (ONNX Runtime)."),
            click.option("--config", type=PATH, help="JSON of model sizes that win over inferred ones."),
            click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True, help=BACKEND),
            # What ExportOptions knows and refuses, with its reason, is not offered.
            click.option("--precision", metavar="[fp32]", default="fp32", show_default=True, help="Of the numbers."),
            click.option("--layout", metavar="[dynamic]", default="dynamic", show_default=True, help="Of the tokens."),
            click.option("--batch", metavar="MIN:OPT:MAX", help="Requests a call; default 1:1:8."),
            click.option("--text", metavar="MIN:OPT:MAX", help="Tokens a sentence; default 2:24:64."),
            click.option("--beams", type=int, help="Beams, or candidates read to the end; vqa 128, caption 8."),
            click.option("--max-length", type=int, help="Ids of an answer or caption at most; vqa 17, caption 41."),
            click.option("--temperature", type=float, help="Default pruning temperature; the checkpoint's."),
            click.option("--plugins", metavar="auto|none|PATH", default="auto", show_default=True, help=PLUGINS),
            click.option("--embed-plugins", is_flag=True, help="Put the plugin library into the plan."),
            click.option("--tokens", type=PATH, metavar="JSON", help="For plans: of python -m calibration tokens."),
            click.option("--calib", type=PATH, metavar="DIR", hidden=True),
            click.option("--samples", type=PATH, metavar="DIR", help="Samples to check the result on; the demo's."),
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
    return ExportOptions(**{**renamed, **ranges})


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


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


class _LostInterrupts:
    """Takes an interrupt again that came where Python cannot raise it and drops it, e.g. in a callback of an import.

    Args:
        usual: hook for all else that cannot be raised.
    """

    def __init__(self, usual: Callable[[Any], object]) -> None:
        self._usual = usual

    def __call__(self, lost: Any) -> None:
        if lost.exc_type is not KeyboardInterrupt:
            self._usual(lost)
            return
        timer = threading.Timer(AGAIN, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        timer.daemon = True
        timer.start()


def raise_interrupts() -> None:
    """From here on, Ctrl-C and SIGTERM unwind what was begun; until then `export/__main__.py` answers them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    if not isinstance(sys.unraisablehook, _LostInterrupts):
        sys.unraisablehook = _LostInterrupts(sys.unraisablehook)


__all__ = [
    "FAILED",
    "PATH",
    "deliver",
    "errors_console",
    "export_options",
    "output_console",
    "parse_options",
    "raise_interrupts",
]
