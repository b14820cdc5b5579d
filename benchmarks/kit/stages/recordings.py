"""The kernels on the inputs of every layer during a replay of recorded cases, in every type."""

import os

from benchmarks.kit.stage import ROOT, StageRun
from benchmarks.kit.stages.tests import run_tests


def run(stage: StageRun) -> bool | str:
    """On a device with the full-size cases; a rehearsal takes the few that the sources carry."""
    if stage.rehearse:
        os.environ["MADTP_GOLDEN"] = str(ROOT / "no-recordings")
    return run_tests(stage, ["tests/plugins/test_kernels.py"], f"recorded and {'host' if stage.rehearse else 'cuda'}")
