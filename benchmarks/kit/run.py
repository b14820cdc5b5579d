"""Runs the kit's stages, each in a separate process with a time limit, and saves results as soon as they exist.

Uses the standard library only, so that a machine without torch gets a sentence and no traceback. Exit status: 0 every
stage passed (or lacks an optional tool), 1 a stage failed, 2 the machine or the folder is at fault or the run was
interrupted, 3 nothing failed, but time ran out for something.
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.kit.files import claim, read_json, write_json, write_text
from benchmarks.kit.plan import MINUTES, PROBE, REHEARSAL_FACTOR, REHEARSAL_MINUTES, STAGES, Stage
from benchmarks.kit.report import render

PASSED, FAILED, WRONG_MACHINE, OPEN = 0, 1, 2, 3
STATES = {0: "passed", 1: "failed", 2: "refused", 4: "skipped"}  # by a stage's exit status
CUT_SHORT = ("overlong", "not begun")
SCHEMA = 1
ROOT = Path(__file__).resolve().parents[2]
LEAST_SECONDS = 5.0  # a stage that has less is not begun
MOST_MINUTES = 600.0
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class InterruptedRunError(Exception):
    """The run was interrupted by a signal."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="run.sh", description="Show on this GPU what only a GPU can show.")
    parser.add_argument(
        "results", type=Path, metavar="RESULTS_DIR", help="folder for results, made where it is missing"
    )
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, kernels emulated, tiny sizes")
    limit = f"time for all of it (default {MINUTES:g}; of a rehearsal {REHEARSAL_MINUTES:g})"
    parser.add_argument("--minutes", type=float, help=limit)
    parser.add_argument(
        "--only", action="append", choices=[stage.name for stage in STAGES], help="this stage alone; may be repeated"
    )
    options = parser.parse_args(arguments)
    if options.minutes is None:
        options.minutes = REHEARSAL_MINUTES if options.rehearse else MINUTES
    if not 0 < options.minutes <= MOST_MINUTES:
        parser.error(f"--minutes has to be more than 0, and at most {MOST_MINUTES:g}")
    return options


def _child_setup() -> None:
    """Make the stage the leader of a process group, and let it die with this process."""
    os.setsid()
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def run_stage(stage: Stage, results: Path, rehearse: bool, seconds: float) -> dict[str, Any]:
    """Run one stage and return its status; its results are in its own file.

    Raises:
        InterruptedRunError: by a signal; the stage is dead then.
        OSError: its files cannot be written.
    """
    target = results / f"{stage.name}.json"
    target.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.kit.stage", stage.name, str(target), "--seconds", f"{seconds:.0f}"]
    begun = time.monotonic()
    why = ""
    with (results / f"{stage.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *(["--rehearse"] if rehearse else [])],
            cwd=ROOT,
            # Emulated kernels are one thread; torch's own would only spin beside them.
            env={**os.environ, "OMP_NUM_THREADS": "1"} if rehearse else None,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=_child_setup,
        )
        try:
            status = process.wait(timeout=seconds)
            state = STATES.get(status, "crashed")
            if state == "crashed":
                why = f"it ended with {f'signal {-status}' if status < 0 else f'status {status}'}"
        except subprocess.TimeoutExpired:
            state, why = "overlong", f"it took more than the {seconds:.0f} s that it had"
        finally:
            with_group(process.pid, signal.SIGKILL)
            process.wait()
    found = read_json(target)
    if state != "passed" and isinstance(found, dict) and found.get("error"):
        why = str(found["error"])
    entry = {"name": stage.name, "state": state, "seconds": round(time.monotonic() - begun, 1), "why": why}
    return {**entry, "result": found}


def with_group(leader: int, number: int) -> None:
    """Send a signal to a stage and everything that it started."""
    with suppress(ProcessLookupError):
        os.killpg(leader, number)


class Results:
    """results.json and results.md, updated after every stage."""

    def __init__(self, folder: Path, rehearse: bool, minutes: float) -> None:
        self.folder = folder
        self.content: dict[str, Any] = {
            "schema": SCHEMA,
            "rehearsal": rehearse,
            "minutes": minutes,
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "ended": None,
            "kit": read_json(ROOT / "kit.json"),
            "stages": [],
        }

    def add(self, entry: dict[str, Any]) -> None:
        """Record a stage. Raises OSError."""
        self.content["stages"].append(entry)
        self.write()

    def end(self, why: str = "") -> None:
        """Record the end of the run and its reason. Raises OSError."""
        self.content["ended"] = datetime.now(UTC).isoformat(timespec="seconds")
        self.content["cut_short"] = why
        self.write()

    def begin(self) -> None:
        """Create the files; neither they nor those of a stage may exist. Raises OSError."""
        for name in ("results.md", *(f"{stage.name}.{ending}" for stage in STAGES for ending in ("json", "log"))):
            if os.path.lexists(self.folder / name):
                raise FileExistsError(self.folder / name)
        claim(self.folder / "results.json", self.content)
        self.write()

    def write(self) -> None:
        """Raises OSError."""
        write_json(self.folder / "results.json", self.content)
        write_text(self.folder / "results.md", render(self.content, read_json(ROOT / "benchmarks/gpu/static.json")))


def run_all(results: Results, stages: Sequence[Stage]) -> int:
    """Run the stages while there is time; return the exit status.

    A stage may use the time that earlier ones left over, but not the share of later ones.
    """
    rehearse, minutes = results.content["rehearsal"], results.content["minutes"]
    factor = REHEARSAL_FACTOR if rehearse else 1.0
    deadline = time.monotonic() + 60 * minutes
    for index, stage in enumerate(stages):
        left = deadline - time.monotonic()
        if left < LEAST_SECONDS:
            results.add({"name": stage.name, "state": "not begun", "seconds": 0, "why": "time ran out", "result": None})
            continue
        say(f"{stage.name}: {stage.shows}")
        later = sum(other.seconds for other in stages[index + 1 :])
        seconds = min(left, max(factor * stage.seconds, left - factor * later))
        entry = run_stage(stage, results.folder, rehearse, seconds)
        results.add(entry)
        say(f"{stage.name}: {entry['state']} in {entry['seconds']:.0f} s{': ' if entry['why'] else ''}{entry['why']}")
        if entry["state"] == "refused" and stage == PROBE:
            results.end(entry["why"])
            return WRONG_MACHINE
    results.end()
    states = {entry["state"] for entry in results.content["stages"]}
    if states <= {"passed", "skipped"}:
        return PASSED
    return OPEN if states <= {"passed", "skipped", *CUT_SHORT} else FAILED


def say(line: str) -> None:
    """Print a line of progress immediately."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Print an error."""
    sys.stderr.write(f"error: {text}\n")


def _interrupt(number: int, _: object) -> None:
    raise InterruptedRunError(signal.Signals(number).name)


def main() -> int:
    """The command line; returns the exit status."""
    options = parse(sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    stages = [stage for stage in STAGES if not options.only or stage.name in options.only or stage == PROBE]
    folder = options.results.resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        results = Results(folder, options.rehearse, options.minutes)
        results.begin()
        try:
            status = run_all(results, stages)
        except InterruptedRunError as interrupt:
            results.end(f"interrupted by {interrupt}")
            complain(f"interrupted by {interrupt}. What was found so far is in {folder}.")
            return WRONG_MACHINE
    except FileExistsError:
        complain(
            f"'{folder}' is not a folder, or holds the results of another run already, or files of their names. They "
            "are worth keeping. Name a new folder."
        )
        return WRONG_MACHINE
    except OSError as error:
        complain(
            f"cannot write the results to '{folder}': {error.strerror or error}. "
            "Name a folder on a disk with room, that may be written to."
        )
        return WRONG_MACHINE
    if status == WRONG_MACHINE:
        complain(results.content["cut_short"])
    say(f"results: {folder / 'results.md'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
