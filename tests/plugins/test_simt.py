"""The stand-in for CUDA (`tests/native/simt`): what it computes is right, and it notices what it is there to notice."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from tests.helpers.native_build import build
from tests.helpers.paths import ROOT
from tests.plugins import mutants


@pytest.fixture(scope="module")
def probe() -> ctypes.CDLL:
    return ctypes.CDLL(str(build().probe))


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def shifted(probe: ctypes.CDLL, threads: int, barrier: bool, seed: int) -> bool:
    """Whether every thread read its neighbour's number."""
    out = torch.full((threads,), -7, dtype=torch.int32)
    probe.simt_seed(seed)
    probe.probe_shift(pointer(out), threads, int(barrier))
    return torch.equal(out, torch.arange(1, threads + 1, dtype=torch.int32) % threads)


@pytest.mark.parametrize("threads", [32, 128, 1024])
def test_a_missing_barrier_is_noticed(probe: ctypes.CDLL, threads: int) -> None:
    assert all(shifted(probe, threads, True, seed) for seed in range(50))
    assert not any(shifted(probe, threads, False, seed) for seed in range(50))


def test_one_seed_gives_one_order(probe: ctypes.CDLL) -> None:
    def wrong(seed: int) -> list[int]:
        out = torch.empty(128, dtype=torch.int32)
        probe.simt_seed(seed)
        probe.probe_shift(pointer(out), 128, 0)
        return out.tolist()

    assert wrong(3) == wrong(3)
    assert len({tuple(wrong(seed)) for seed in range(10)}) > 5


def test_an_asynchronous_copy_may_come_late(probe: ctypes.CDLL) -> None:
    source = torch.rand(128)
    for seed in range(20):
        probe.simt_seed(seed)
        waited, hasty = torch.zeros(128), torch.zeros(128)
        probe.probe_copy(pointer(waited), pointer(source), 1)
        probe.probe_copy(pointer(hasty), pointer(source), 0)
        assert torch.equal(waited, source)
        arrived = hasty == source
        assert arrived.any()  # it may come early too
        assert not arrived.all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("probe_diverging(1)", "deadlock"),
        ("probe_diverging(0)", "deadlock"),
        ("probe_mixed()", "a warp is in __"),
        ("probe_shift(None, 33, 1)", "not supported"),
    ],
)
def test_what_hangs_a_gpu_aborts(call: str, message: str) -> None:
    script = "import ctypes, sys; ctypes.CDLL(sys.argv[1])." + call
    command = [sys.executable, "-c", script, build().probe]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode < 0
    assert "simt: " in result.stderr
    assert message in result.stderr


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tensor_core_instructions_multiply_matrices(probe: ctypes.CDLL, dtype: torch.dtype, transposed: bool) -> None:
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        a = torch.randn(16, 16, generator=generator).to(dtype)
        b = torch.randn(8, 16, generator=generator).to(dtype) if transposed else torch.randn(16, 8, generator=generator)
        b = b.to(dtype)
        out = torch.randn(16, 8, generator=generator)
        expected = out.double() + a.double() @ (b.mT if transposed else b).double()
        probe.probe_multiply(pointer(out), pointer(a), pointer(b), int(dtype == torch.bfloat16), int(transposed))
        torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)


def test_every_barrier_of_every_kernel_is_needed_and_tested() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # it forks
    command = [sys.executable, "-m", "tests.plugins.mutants"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    noticed = {line.split()[1] for line in result.stdout.splitlines() if line.startswith("noticed")}
    assert noticed == mutants.sites_in_sources()
    assert len(noticed) > 15
