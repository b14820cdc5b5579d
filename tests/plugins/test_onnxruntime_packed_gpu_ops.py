"""The packed ops of ONNX Runtime's CUDA provider, their kernels on the host, as in test_onnxruntime_gpu_ops.py."""

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from madtp.ops.spec import EXACT, INCOMING, PACKED_ATTENTION, PACKED_COMPACT, VARLEN_ATTENTION, OpSpec
from tests.helpers.kernel_calls import bits
from tests.helpers.kernels import Kernels
from tests.helpers.native_build import build
from tests.helpers.onnxruntime_ops import OnnxRuntimeOps
from tests.helpers.packed_calls import attention_call, compact_call, varlen_call

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LENGTHS, ROWS = (20, 1, 0, 70), 91


@pytest.fixture(scope="module")
def ops() -> OnnxRuntimeOps:
    return OnnxRuntimeOps(build().cuda_ops)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(build().kernels, "cpu")


@pytest.fixture
def device() -> Iterator[ctypes.CDLL]:
    """The stand-in for the device; it holds no memory but what a call forgot."""
    library = ctypes.CDLL(str(build().kernels))
    library.simt_most_memory.argtypes = [ctypes.c_size_t]
    held = library.simt_held_memory()
    yield library
    library.simt_most_memory(2**64 - 1)
    assert library.simt_held_memory() == held


def compaction(dtype: torch.dtype = torch.float32, capacity: int = 0, group: int = 1, margin: float = 0.0) -> list[Any]:
    call = list(compact_call(LENGTHS, 3, temperature=0.7, capacity=capacity, group=group, margin=margin, spare=3))
    call[0], call[5] = call[0].to(dtype), call[5].abs()
    return call


def same(got: Tensor, expected: Tensor, rows: int) -> bool:
    return torch.equal(bits(got[:rows]), bits(expected[:rows]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_is_the_kernels(
    ops: OnnxRuntimeOps, kernels: Kernels, device: ctypes.CDLL, dtype: torch.dtype
) -> None:
    call = attention_call(LENGTHS, 2, 32, 1, 3, dtype)
    for got, expected in zip(ops.call(PACKED_ATTENTION, call), kernels.packed_aligned_attention(*call), strict=True):
        assert same(got, expected, ROWS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_to_others_is_the_kernels(ops: OnnxRuntimeOps, kernels: Kernels, dtype: torch.dtype) -> None:
    query, key_value, *rest = varlen_call(LENGTHS, (5, 0, 9, 66), 2, 32, 1, 3)
    call = (query.to(dtype), key_value.to(dtype), *rest)
    (got,) = ops.call(VARLEN_ATTENTION, call)
    assert same(got, kernels.varlen_attention(*call), ROWS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("group", "margin"), [(1, 0.0), (2, 0.0), (1, 0.3)])
def test_compaction_is_the_kernels(
    ops: OnnxRuntimeOps, kernels: Kernels, device: ctypes.CDLL, dtype: torch.dtype, group: int, margin: float
) -> None:
    call = compaction(dtype, group=group, margin=margin)
    wanted = kernels.packed_token_compact(*call[:9], group=group, keep_margin=margin, capacity=ROWS)
    needed = wanted[4]
    assert needed < ROWS
    for capacity in (EXACT, INCOMING, needed - 3, needed, needed + 4):
        call[9] = capacity
        *columns, cu, count = ops.call(PACKED_COMPACT, call)
        rows = {EXACT: needed, INCOMING: ROWS + 3}.get(capacity, capacity)
        assert [len(column) for column in columns] == [rows] * 3
        assert int(count) == needed
        assert torch.equal(cu, wanted[3].clamp(max=rows))
        if capacity != needed - 3:
            assert all(same(got, expected, needed) for got, expected in zip(columns, wanted[:3], strict=True))


@pytest.mark.parametrize("capacity", [EXACT, INCOMING, 5])
def test_no_rows_and_no_sequences_are_no_work(ops: OnnxRuntimeOps, device: ctypes.CDLL, capacity: int) -> None:
    for lengths, spare in (((0, 0), 0), ((), 3)):
        assert [len(part) for part in ops.call(PACKED_ATTENTION, attention_call(lengths, 1, 8, 0, spare))] == [
            spare
        ] * 3
        assert len(ops.call(VARLEN_ATTENTION, varlen_call(lengths, lengths, 1, 8, 0, spare))[0]) == spare
        call = compact_call(lengths, 0, temperature=0.7, capacity=capacity, spare=spare)
        *columns, cu, count = ops.call(PACKED_COMPACT, call)
        assert [len(column) for column in columns] == [spare if capacity == INCOMING else capacity] * 3
        assert int(count) == 0
        assert cu.tolist() == [0] * (len(lengths) + 1)


REFUSED: dict[str, tuple[OpSpec, Any, str]] = {
    "width": (
        PACKED_ATTENTION,
        attention_call([5], 1, 12, 0),
        "qkv of PackedAlignedAttention is [5, 36] in 1 sequences",
    ),
    "head": (PACKED_ATTENTION, attention_call([5], 1, 264, 0), "heads of at most 256 columns"),
    "query": (VARLEN_ATTENTION, varlen_call([5], [5], 1, 12, 0), "query of VarlenAttention is [5, 12] in 1 sequences"),
    "tokens": (
        PACKED_COMPACT,
        compact_call([5], 0, temperature=0.7, width=12),
        "tokens of PackedTokenCompact are [5, 12] in 1 sequences",
    ),
    "capacity": (PACKED_COMPACT, compact_call([5], 0, temperature=0.7, capacity=2**25), "at most 16777216 rows"),
}


@pytest.mark.parametrize("bad", REFUSED)
def test_sizes_that_the_kernels_do_not_take_are_refused_in_a_sentence(ops: OnnxRuntimeOps, bad: str) -> None:
    spec, call, words = REFUSED[bad]
    with pytest.raises(Exception, match=spec.onnx_name) as error:
        ops.call(spec, call)
    assert words in str(error.value)


def test_short_memory_is_a_sentence_and_the_next_call_right(ops: OnnxRuntimeOps, device: ctypes.CDLL) -> None:
    calls = [(PACKED_ATTENTION, attention_call(LENGTHS, 2, 32, 1)), (PACKED_COMPACT, compaction())]
    for spec, call in calls:
        device.simt_most_memory(4)
        with pytest.raises(Exception, match="the GPU is out of memory"):
            ops.call(spec, call)
        device.simt_most_memory(2**64 - 1)
        ops.call(spec, call)
