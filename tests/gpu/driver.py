"""Runs every case of both ops once, for compute-sanitizer: `compute-sanitizer python -m tests.gpu.driver`."""

import sys

from benchmarks.gpu.calls import require_device
from madtp.errors import MadtpError
from madtp.ops.library import load_library
from tests.gpu.cases import run_all


def main() -> int:
    """Exit status: 0, or 2 where there is no device or library."""
    try:
        require_device()
        library = load_library()
    except MadtpError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"calls ran: {run_all(library)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
