"""What the commands share: options of an export, where output goes, how an interrupt is taken."""

import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import click

from export.options import BACKENDS, LAYOUTS, PRECISIONS, ExportOptions, Range
from madtp.command import PATH, allow_outside, errors_console, output_console

FAILED = 1  # a check failed
AGAIN = 0.05  # seconds until an interrupt that was lost is taken again


def export_options(command: Any) -> Any:
    """The options that an export and its preflight share."""
    for option in reversed(
        (
            click.option("--ckpt", type=PATH, help="Trained MADTP checkpoint (.pt, .pth)."),
            click.option("--engine", type=PATH, help="Output: out.plan (TensorRT) or out.onnx (ONNX Runtime)."),
            click.option("--config", type=PATH, help="JSON of model sizes that win over inferred ones."),
            click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True),
            click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True),
            click.option("--layout", type=click.Choice(LAYOUTS), default="dynamic", show_default=True),
            click.option("--batch", metavar="MIN:OPT:MAX", help="Requests a call; default 1:1:8."),
            click.option("--text", metavar="MIN:OPT:MAX", help="Tokens a sentence; default 2:24:64."),
            click.option("--temperature", type=float, help="Default pruning temperature; the checkpoint's."),
            click.option("--plugins", metavar="auto|none|PATH", default="auto", show_default=True),
            click.option("--embed-plugins", is_flag=True, help="Put the plugin library into the plan."),
            click.option("--tokens", type=PATH, metavar="JSON", help="Of python -m calibration tokens."),
            click.option("--calib", type=PATH, metavar="DIR", help="Calibration data for int8 and fp8."),
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
    "errors_console",
    "export_options",
    "output_console",
    "parse_options",
    "raise_interrupts",
]
