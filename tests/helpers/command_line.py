"""Runs the command line in this process, and keeps its result."""

import sys
from dataclasses import dataclass

import pytest


def run_export(patch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `python -m export ARGUMENTS` in this process; return its exit status."""
    from export.cli import main as cli

    patch.setattr(sys, "argv", ["export", *map(str, arguments)])
    return cli.main()


@dataclass(frozen=True)
class Ran:
    """Result of a command line."""

    status: int
    out: str
    err: str

    def refused(self, *parts: str) -> None:
        """Assert that it was refused as bad input, with a message that contains all `parts`."""
        assert self.status == 2, self
        assert "Traceback" not in self.err
        for part in parts:
            assert part in self.err, f"{part!r} is not in: {self.err}"


# An export that is given its ONNX file instead of tracing, to be in a later phase soon, and never ends the last one.
WITHOUT_TRACE = """
import functools, runpy, shutil, sys
import export.build.traced_part, export.build.validation
export.build.validation.time_rounds = functools.partial(export.build.validation.time_rounds, min_rounds=10**9)
source = sys.argv.pop(1)
export.build.traced_part.write_part = lambda part, path, **options: shutil.copy(source, path)
runpy.run_module("export", run_name="__main__")
"""
