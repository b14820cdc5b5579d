"""What the command lines of this package's tools share: where results go, and how a run ends."""

import os
import sys
from contextlib import suppress
from importlib import metadata
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from madtp.console.plain import PlainConsole
from madtp.console.printing import error_text, say
from madtp.errors import MadtpError, one_line

WRONG_INPUT = 2  # the user's input or machine
WIDTH = 118  # of tables where there is no terminal to ask


class TextPath(click.Path):
    """A path that can be written into JSON and XML: of a name that is UTF-8, as are the folders above it."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        path = super().convert(value, param, context)
        try:
            os.fspath(Path(os.fsdecode(path)).absolute()).encode()
        except UnicodeEncodeError:
            self.fail(
                f"{os.fspath(path)!r}: its name, or that of a folder above it, is not UTF-8. Rename it.", param, context
            )
        return path


PATH = TextPath(path_type=Path)
allow_outside = click.option("--allow-outside", is_flag=True, help="Accept images outside the data folder.")


def version_option(command: Any) -> Any:
    """`--version` of a command line: the package's, and exit 0."""

    def show(context: click.Context, _: click.Parameter, asked: bool) -> None:
        if asked and not context.resilient_parsing:
            try:
                version = metadata.version("madtp-deploy")
            except metadata.PackageNotFoundError:
                version = "of sources that were not installed"
            click.echo(f"madtp-deploy {version}")
            context.exit()

    return click.option(
        "--version", is_flag=True, is_eager=True, expose_value=False, callback=show, help="Show the version and exit."
    )(command)


def output_console() -> Console:
    """Standard output for tables; paths in them may hold brackets or worse, which are shown as they are."""
    console = PlainConsole()
    return console if console.is_terminal else PlainConsole(width=WIDTH)


def errors_console() -> Console:
    """Standard error, for progress."""
    return PlainConsole(stderr=True)


def show_usage_error(error: click.ClickException) -> None:
    """Print what is wrong with a command line."""
    text = StringIO()
    error.show(text)
    say(text.getvalue().rstrip("\n"), err=True)


def run(command: click.Command, interrupted: str) -> int:
    """Run a command line on `sys.argv`; returns its exit status, which is 2 after any error that a user can cause.

    `interrupted` is printed after Ctrl-C or SIGTERM, unless the command raises a `click.Abort` that says more.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a character that the terminal's encoding lacks is no reason to fail
            stream.reconfigure(errors="replace")
    try:
        status = command.main(standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        show_usage_error(error)
    except MadtpError as error:
        say(f"error: {error_text(error)}", err=True)
    except OSError as error:
        # Standard output that is closed or full has no name.
        what = "the result could not be printed" if error.filename is None else f"cannot use '{error.filename}'"
        with suppress(OSError):
            say(f"error: {one_line(what)}: {one_line(error.strerror or str(error))}", err=True)
        _drop_output()
    except SystemExit as ended:
        if ended.code == 0:  # click has completed a command line for a shell
            return 0
        _drop_output()  # click's and rich's answer to a pipe that nobody reads; their status, 1, would be a verdict
    except (click.Abort, KeyboardInterrupt) as error:
        # CPython ends `python -m` by SIGINT instead of with our status if a KeyboardInterrupt, though caught, has
        # passed through an exec() of a string, as imports of torch are full of; the next exec() makes it forget that.
        exec("")
        say(str(error) or interrupted, err=True)
    return WRONG_INPUT


def _drop_output() -> None:
    """Python writes what is left at exit, and would complain again."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
