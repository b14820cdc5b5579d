"""The kernel tests that elsewhere run on the host, on the device: sizes, masks, ties, NaN, bounds, batch slots."""

from benchmarks.kit.stage import StageRun
from benchmarks.kit.stages.tests import run_tests

QUICK = "test_kernel_contract or keeping_nothing or batch_mates or leading_or_all"  # of what is emulated


def run(stage: StageRun) -> bool | str:
    """On a device, run all of them except the recordings, which are a separate stage."""
    files = [f"tests/plugins/{name}.py" for name in ("test_kernels", "test_kernel_contract", "test_packed_kernels")]
    return run_tests(stage, files, f"host and ({QUICK})" if stage.rehearse else "cuda and not recorded")
