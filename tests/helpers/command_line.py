"""The command line run in this process, and what it did."""

import sys
from dataclasses import dataclass

import pytest


def run_export(patch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit status of `python -m export ARGUMENTS`, run in this process."""
    from export.cli import main as cli

    patch.setattr(sys, "argv", ["export", *map(str, arguments)])
    return cli.main()


@dataclass(frozen=True)
class Ran:
    """What a command line did."""

    status: int
    out: str
    err: str

    def refused(self, *parts: str) -> None:
        """Assert that it ended as bad input has to, with a message that has all `parts`."""
        assert self.status == 2, self
        assert "Traceback" not in self.err
        for part in parts:
            assert part in self.err, f"{part!r} is not in: {self.err}"


# An export that is given its ONNX file instead of tracing, to be in a later phase soon, and never ends the last one.
WITHOUT_TRACE = """
import functools, runpy, shutil, sys
import export.build.check, export.build.pipeline
export.build.check.time_rounds = functools.partial(export.build.check.time_rounds, min_rounds=10**9)
source = sys.argv.pop(1)
export.build.pipeline.trace_part = lambda part: None
export.build.pipeline.save_onnx = lambda program, path, external_data: shutil.copy(source, path)
runpy.run_module("export", run_name="__main__")
"""
