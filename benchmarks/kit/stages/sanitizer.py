"""compute-sanitizer on small cases: no bad access, no race. A rehearsal makes the same calls without it."""

from benchmarks.kit.stage import StageRun
from benchmarks.kit.stages.tests import run_tests


def run(stage: StageRun) -> bool | str:
    """The test of tests/gpu; skipped if the tool is missing or refuses the machine."""
    if stage.rehearse:
        from madtp.ops.library import load_library
        from tests.helpers.gpu_cases import SANITIZED, chosen, run_all

        stage.save(calls=run_all(load_library(stage.library), chosen(SANITIZED), stage.device))
        return True
    return run_tests(stage, ["tests/gpu/test_sanitizer.py"], "memcheck or racecheck", may_skip=True)
