"""The calls that GPU tests and benchmarks are made of, on the host build of the kernels: no device is needed here."""

import ctypes

import pytest
import torch

from benchmarks.gpu.calls import (
    attention_call,
    attention_inputs,
    compact_call,
    compact_inputs,
)
from madtp.ops.library import KernelError, load_library
from madtp.ops.reference import aligned_attention, token_compact
from tests.helpers import native_build
from tests.helpers.gpu_cases import SANITIZED, chosen
from tests.helpers.paths import ROOT


@pytest.fixture(scope="module")
def host() -> ctypes.CDLL:
    return load_library(native_build.build().kernels)


def test_attention_call_gives_what_the_op_gives(host: ctypes.CDLL) -> None:
    qkv, key_mask = attention_inputs(2, 70, 64, torch.float32, device="cpu")
    key_mask[0, 60:] = -10000.0
    call = attention_call(host, qkv, key_mask, 0, 2)
    for _ in range(2):  # the same buffers serve every run
        call.run()
        torch.testing.assert_close(call.outputs, aligned_attention(qkv, key_mask, 0, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_compact_call_gives_what_the_op_gives(host: ctypes.CDLL, margin: float) -> None:
    inputs = compact_inputs(2, 70, 64, 8, torch.float32, device="cpu")
    call = compact_call(host, inputs, keep_margin=margin)
    call.run()
    tokens, mask, ids, count = token_compact(*inputs, 0, margin)
    kept = int(call.outputs[3])
    assert kept == int(count)
    assert 2 < kept < 70  # the inputs of the benchmark are pruned, or it would time a copy
    rows = 2 * kept
    torch.testing.assert_close(call.outputs[0].reshape(-1, 64)[:rows], tokens.reshape(rows, 64), rtol=1e-4, atol=1e-5)
    assert torch.equal(call.outputs[1].reshape(-1)[:rows], mask.reshape(-1))
    assert torch.equal(call.outputs[2].reshape(-1)[:rows], ids.reshape(-1))


def test_a_call_keeps_its_buffers(host: ctypes.CDLL) -> None:
    """Who holds `run` alone, as a timing loop does, must not write to freed memory."""
    inputs = compact_inputs(1, 8, 8, 2, torch.float32, device="cpu")
    calls = [
        compact_call(host, inputs),
        attention_call(host, *attention_inputs(1, 8, 8, torch.float32, device="cpu"), 0, 1),
    ]
    for call in calls:
        buffers = {id(tensor) for tensor in (*call.held, *call.outputs)}
        assert buffers <= {id(tensor) for default in call.run.__defaults__ for tensor in default}


def test_missing_library_is_named() -> None:
    with pytest.raises(KernelError, match=r"build\.sh plugins"):
        load_library(ROOT / "install" / "lib" / "no-such.so")


def test_cases_are_chosen_by_name() -> None:
    assert [case.name for case in chosen(SANITIZED)] == list(SANITIZED)
    with pytest.raises(ValueError, match="no case is named fp8; there are fp32-tiles-of-64, "):
        chosen(["fp16-pruned", "fp8"])
