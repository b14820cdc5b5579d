"""`python -m export` and the console script `madtp-export`: see `export/cli/main.py`."""

import os
import signal
import sys


def leave(*_: object) -> None:
    """Answer Ctrl-C while libraries are imported: an exception there makes some of them abort the process."""
    os.write(2, b"interrupted: nothing was written\n")
    os._exit(2)


def main() -> None:
    """Run the command line and end the process with its status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as it is under nohup and in the background
            signal.signal(number, leave)

    from export.cli import main as cli

    status = cli.main()
    if status == 2:
        # CPython ends by SIGINT instead of with our status if a KeyboardInterrupt, though caught, has passed through an
        # exec() of a string, which tracing is full of. Nothing is left to be closed but these two.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
