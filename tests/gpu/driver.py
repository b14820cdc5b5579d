"""Runs cases of both ops once, for compute-sanitizer: `compute-sanitizer python -m tests.gpu.driver [CASE ...]`.

Without a name, all of them.
"""

import sys

from benchmarks.gpu.calls import require_device
from madtp.errors import MadtpError
from madtp.ops.library import load_library
from tests.helpers.gpu_cases import ATTENTION, COMPACT, chosen, run_all


def main(names: list[str]) -> int:
    """Exit status: 0, or 2 where there is no such case, no device or no library."""
    try:
        cases = chosen(names) if names else [*ATTENTION, *COMPACT]
        require_device()
        library = load_library()
    except (MadtpError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"calls ran: {run_all(library, cases)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
