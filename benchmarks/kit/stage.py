"""One stage of the kit: `python -m benchmarks.kit.stage NAME FILE --seconds N [--rehearse]`.

Exit status: 0 passed, 1 failed, 2 the machine is at fault, 4 nothing could be run (FILE then holds an "error" with the
reason).
"""

import argparse
import importlib
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.kit.files import write_json
from benchmarks.kit.plan import STAGES

PASSED, FAILED, WRONG_MACHINE, NOTHING_RAN = 0, 1, 2, 4
SKIPPED = "skipped"  # what a stage returns where this machine lacks what it needs, and could do without
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class StageRun:
    """Settings and results of a stage.

    Attributes:
        file: file for its results.
        rehearse: whether to run on the CPU, with the kernels' build for the host and tiny sizes.
        deadline: end of its time, on the monotonic clock.
        found: its results so far; `save` writes them.
    """

    file: Path
    rehearse: bool
    deadline: float
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """Device of its tensors."""
        return "cpu" if self.rehearse else "cuda"

    @property
    def library(self) -> Path:
        """The kernels for that device."""
        return ROOT / "lib" / ("libmadtp_kernels_host.so" if self.rehearse else "libmadtp_kernels.so")

    @property
    def seconds_left(self) -> float:
        """Seconds until its deadline."""
        return self.deadline - time.monotonic()

    def save(self, **found: Any) -> None:
        """Add to the results, and write them."""
        self.found.update(found)
        write_json(self.file, self.found)


class WrongMachineError(Exception):
    """This machine cannot run the kit; the message says why, and what to do."""


def main() -> int:
    """Run the stage; returns the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=[stage.name for stage in STAGES])
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    stage = StageRun(options.file, options.rehearse, time.monotonic() + options.seconds)
    try:
        passed = importlib.import_module(f"benchmarks.kit.stages.{options.name}").run(stage)
    except WrongMachineError as error:
        stage.save(error=str(error))
        return WRONG_MACHINE
    except Exception as error:
        import traceback

        traceback.print_exc()  # into the stage's log
        text = " ".join(str(error).split()) or "no message"
        stage.save(error=f"{type(error).__name__}: {text[:500]}")
        return FAILED
    stage.save(passed=passed)
    return NOTHING_RAN if passed == SKIPPED else PASSED if passed else FAILED


if __name__ == "__main__":
    # The module's own name, so that stages catch and raise the same classes.
    from benchmarks.kit import stage as this

    sys.exit(this.main())
