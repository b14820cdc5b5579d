"""The packed torch ops on the kernels (`madtp.ops.register_kernels`): here on their build for the host."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from madtp.errors import InputError
from madtp.ops import packed
from madtp.ops.kernels import OPS, KernelOps, register_kernels, without_kernels
from madtp.ops.library import KernelError
from tests.helpers.kernel_calls import bits
from tests.helpers.native_build import build
from tests.helpers.packed_calls import attention_call, compact_call, cu_seqlens, varlen_call

LENGTHS, ROWS = (20, 1, 0, 70), 91
ATTEND, COMPACT = torch.ops.madtp.packed_aligned_attention, torch.ops.madtp.packed_token_compact
VARLEN = torch.ops.madtp.varlen_attention


@pytest.fixture(scope="module")
def ops() -> Iterator[KernelOps]:
    """The host's kernels in the place of the reference, on CPU tensors."""
    yield register_kernels(build().kernels, device="cpu")
    for op in OPS.values():
        op.register_kernel("cpu", op._init_fn)


def call(**changed: Any) -> list[Any]:
    """Arguments of PackedTokenCompact whose results rounding does not decide."""
    arguments = list(compact_call(LENGTHS, 3, temperature=0.7, spare=3, **changed))
    arguments[5] = arguments[5].abs()
    return arguments


def near(got: Tensor, expected: Tensor, rows: int) -> None:
    torch.testing.assert_close(got[:rows], expected[:rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_registered_attention_runs_the_kernels(ops: KernelOps, dtype: torch.dtype) -> None:
    arguments = attention_call(LENGTHS, 2, 32, 0, 3, dtype)
    found = ATTEND(*arguments)
    direct, expected = ops.packed_aligned_attention(*arguments), packed.packed_aligned_attention(*arguments)
    for got, again, reference in zip(found, direct, expected, strict=True):
        assert torch.equal(bits(got[:ROWS]), bits(again[:ROWS]))
        torch.testing.assert_close(got[:ROWS], reference[:ROWS], rtol=0.02, atol=0.1 if dtype.itemsize == 2 else 1e-5)


@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_without_a_capacity_rows_are_those_that_the_sequences_need(ops: KernelOps, margin: float) -> None:
    compacted, mask, ids, cu, count = COMPACT(*call(margin=margin))
    expected = packed.packed_token_compact(*call(margin=margin))
    needed = int(count)
    assert len(compacted) == len(mask) == len(ids) == needed == int(expected[4]) < ROWS
    assert torch.equal(cu, expected[3])
    assert torch.equal(ids, expected[2])
    near(compacted, expected[0], needed)
    with without_kernels("cpu"):
        assert torch.equal(COMPACT(*call(margin=margin))[0], expected[0])


@pytest.mark.parametrize("beyond", [-4, 0, 5])
def test_a_capacity_is_the_size_of_the_results_whatever_they_need(ops: KernelOps, beyond: int) -> None:
    exact = packed.packed_token_compact(*call())
    room = int(exact[4]) + beyond
    compacted, mask, ids, cu, count = COMPACT(*call(capacity=room))
    assert len(compacted) == len(mask) == len(ids) == room
    assert int(count) == int(exact[4])
    assert torch.equal(cu, exact[3].clamp(max=room))
    if beyond >= 0:
        near(compacted, exact[0], int(count))


def test_sequences_of_a_request_keep_equally_many(ops: KernelOps) -> None:
    arguments = list(compact_call([30, 40, 30, 40], 2, temperature=0.7, group=2))
    arguments[5] = arguments[5].abs()
    cu = COMPACT(*arguments)[3]
    assert torch.equal(cu, packed.packed_token_compact(*arguments)[3])
    lengths = cu.diff().tolist()
    assert lengths[:2] == lengths[2:] < [30, 40]


def test_attention_to_other_sequences_runs_the_kernels(ops: KernelOps) -> None:
    arguments = varlen_call([3, 5, 0], [4, 0, 7], 2, 16, 0, spare=2)
    got = VARLEN(*arguments)
    near(got, packed.varlen_attention(*arguments), 8)
    assert not got[3:8].any()
    no_keys = varlen_call([3], [0], 2, 16, 0)
    assert not VARLEN(*no_keys).any()


def test_float64_and_no_rows_run_the_reference(ops: KernelOps) -> None:
    qkv, *rest = attention_call(LENGTHS, 2, 8, 0)
    assert ATTEND(qkv.double(), *rest)[0].dtype == torch.float64
    none = attention_call([0, 0], 2, 8, 0)
    assert [len(result) for result in ATTEND(*none)] == [0, 0, 0]
    assert len(VARLEN(*varlen_call([0], [3], 2, 8, 0))) == 0
    empty = compact_call([0, 0], 0, temperature=0.7)
    assert int(COMPACT(*empty)[4]) == 0


def test_tensors_that_do_not_fit_together_are_named(ops: KernelOps) -> None:
    qkv, mask, cu, causal, heads = attention_call(LENGTHS, 2, 8, 0)
    with pytest.raises(InputError, match="key_mask of packed_aligned_attention"):
        ops.packed_aligned_attention(qkv, mask[1:], cu, causal, heads)
    arguments = call()
    with pytest.raises(InputError, match="4 sequences, 4 requests and a group of 2"):
        ops.packed_token_compact(*arguments[:10], 2, *arguments[11:])
    query, key_value, cu, keys, heads = varlen_call([3], [4], 2, 8, 0)
    with pytest.raises(InputError, match="key_value of varlen_attention"):
        ops.varlen_attention(query, key_value[:, :24], cu, keys, heads)
    with pytest.raises(InputError, match="cu_keys of varlen_attention"):
        ops.varlen_attention(query, key_value, cu, cu_seqlens([2, 2]), heads)


def test_sizes_that_the_kernels_do_not_take_are_named(ops: KernelOps) -> None:
    qkv, mask, cu, causal, _ = attention_call(LENGTHS, 1, 264, 0)
    with pytest.raises(KernelError, match="madtp_packed_aligned_attention returned CUDA error 1"):
        ops.packed_aligned_attention(qkv, mask, cu, causal, 1)
