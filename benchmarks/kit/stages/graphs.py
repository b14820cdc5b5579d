"""CUDA graphs: each op captured, replayed, and replayed on other inputs. A rehearsal makes the calls uncaptured."""

from benchmarks.kit.stage import StageRun
from benchmarks.kit.stages.tests import run_tests


def run(stage: StageRun) -> bool | str:
    """The tests of tests/gpu."""
    if stage.rehearse:
        return run_tests(stage, ["tests/gpu/test_calls.py"], "gives or keeps")
    return run_tests(stage, ["tests/gpu/test_graphs.py"], "test_graphs")
