"""CUDA graphs: ops, and a packed layer, captured, replayed, and replayed on other inputs. A rehearsal calls."""

from benchmarks.kit.stage import StageRun
from benchmarks.kit.stages.tests import run_tests

PACKED = "tests/gpu/test_packed_graphs.py"


def run(stage: StageRun) -> bool | str:
    """The tests of tests/gpu."""
    if stage.rehearse:
        return run_tests(stage, ["tests/gpu/test_calls.py", PACKED], "gives or keeps or (packed and cpu)")
    return run_tests(stage, ["tests/gpu/test_graphs.py", PACKED], "test_graphs or (packed and cuda)")
