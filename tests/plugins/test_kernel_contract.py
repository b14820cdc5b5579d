"""What `plugins/include/madtp/kernels.h` promises of sizes, pointers and workspace."""

import ctypes
import itertools
from typing import Any

import pytest
import torch

from madtp.ops.library import (
    INVALID_VALUE,
    NOT_SUPPORTED,
    AttentionShape,
    CompactInputs,
    CompactOutputs,
    CompactShape,
    KernelError,
)
from tests.helpers.kernels import Kernels, libraries, load


@pytest.fixture(scope="module", params=libraries())
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return load(request.param)


def test_attention_workspace_is_as_documented(kernels: Kernels) -> None:
    ask = kernels.library.madtp_aligned_attention_workspace
    for batch, length, heads, dtype in itertools.product((1, 3, 64), (1, 64, 65, 577), (1, 12), range(3)):
        shape = AttentionShape(batch, length, 96, heads, 0, dtype)
        assert ask(ctypes.byref(shape)) == 4 * batch * length * (4 * heads + -(-length // 64))


def test_compaction_workspace_grows_with_tokens_and_not_with_their_square(kernels: Kernels) -> None:
    def ask(batch: int, length: int, alignments: int) -> int:
        shape = CompactShape(batch, length, 64, alignments, 0, 0, 0)
        return kernels.library.madtp_token_compact_workspace(ctypes.byref(shape))

    for batch, length, alignments in itertools.product((1, 3, 64), (2, 65, 577, 4096), (1, 100)):
        pieces = 6 * batch * length + batch * (-(-alignments // 32)) + batch
        assert ask(batch, length, alignments) <= 4 * pieces + 9 * 16
    assert ask(2, 4001, 8) - ask(2, 3001, 8) == ask(2, 3001, 8) - ask(2, 2001, 8)


GOOD_ATTENTION, GOOD_COMPACT = (1, 5, 16, 2, 0, 0), (1, 5, 16, 4, 0, 0, 0)
BAD_ATTENTION = [(0, 0), (0, -1), (0, 65536), (1, 0), (1, -5), (1, 2**31 - 1), (2, 0), (2, 12), (2, -16), (2, 1032)]
BAD_ATTENTION += [(3, 0), (3, 3), (3, -2), (4, 2), (4, -1), (5, 3), (5, -1)]
BAD_COMPACT = [(0, 0), (0, 65536), (1, 1), (1, -5), (1, 2**31 - 1), (2, 0), (2, 12), (3, 0), (3, -1), (4, -1)]
BAD_COMPACT += [(5, 1), (5, -1), (6, 3), (6, -1)]


@pytest.mark.parametrize("op", ["aligned_attention", "token_compact"])
def test_sizes_and_pointers_outside_the_contract_are_refused(kernels: Kernels, op: str) -> None:
    attention = op == "aligned_attention"
    memory = torch.full((1 << 16,), 0x5A, dtype=torch.uint8, device=kernels.device)
    pointers = [memory.data_ptr() + 4096 * index for index in range(6 if attention else 13)]

    def call(shape: Any, pointers: list[int | None]) -> int:
        if attention:
            arguments = [ctypes.c_void_p(pointer) for pointer in pointers]
        else:
            inputs, outputs = CompactInputs(*pointers[:8]), CompactOutputs(*pointers[8:12])
            arguments = [ctypes.byref(inputs), ctypes.byref(outputs), ctypes.c_void_p(pointers[12])]
        return getattr(kernels.library, f"madtp_{op}")(shape and ctypes.byref(shape), *arguments, None)

    kind, good = (AttentionShape, GOOD_ATTENTION) if attention else (CompactShape, GOOD_COMPACT)
    assert call(None, pointers) == INVALID_VALUE
    for index, value in BAD_ATTENTION if attention else BAD_COMPACT:
        shape = kind(*good[:index], value, *good[index + 1 :])
        assert call(shape, pointers) == INVALID_VALUE, (index, value)
        assert getattr(kernels.library, f"madtp_{op}_workspace")(ctypes.byref(shape)) == 0
    wide = (0, 2, 5) if attention else (0, 7, 8, 11, 12)  # read 8 or 16 bytes at a time
    for index in range(len(pointers)):
        assert call(kind(*good), [*pointers[:index], None, *pointers[index + 1 :]]) == INVALID_VALUE
        shifted = [*pointers[:index], pointers[index] + (4 if index in wide else 2), *pointers[index + 1 :]]
        assert call(kind(*good), shifted) == INVALID_VALUE
    assert (memory == 0x5A).all()


def test_scores_and_masks_may_lie_on_any_boundary_of_their_type(kernels: Kernels) -> None:
    """As slices of larger tensors do."""

    def sliced(tensor: torch.Tensor) -> torch.Tensor:
        room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
        room[1:] = tensor.flatten()
        view = room[1:].reshape(tensor.shape)
        assert view.data_ptr() % 16 != 0
        return view

    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 33, 96, generator=generator).to(kernels.device)
    mask = torch.zeros(2, 33, device=kernels.device)
    context, column, class_score = kernels.aligned_attention(qkv, mask, 0, 2)
    again = kernels.aligned_attention(qkv, sliced(mask), 0, 2)
    assert [pointer % 16 != 0 for pointer in kernels.given] == [False, True]
    assert all(map(torch.equal, (context, column, class_score), again))

    ids = torch.arange(33, dtype=torch.int32, device=kernels.device).expand(2, -1).contiguous()
    alignment = torch.randn(2, 32, 5, generator=generator).to(kernels.device)
    scalars = (torch.tensor(0.5, device=kernels.device), torch.tensor(1, device=kernels.device))
    small = (mask, ids, column, class_score, alignment)
    aligned = kernels.token_compact(context, *small, *scalars, 3)
    shifted = kernels.token_compact(context, *map(sliced, small), *scalars, 3)
    assert [pointer % 16 != 0 for pointer in kernels.given[:6]] == [False] + 5 * [True]
    assert aligned.count == shifted.count < 33
    assert torch.equal(aligned.tokens, shifted.tokens)
    assert torch.equal(aligned.ids, shifted.ids)


def refuse_heads_of_128(host: Kernels) -> None:
    """Their kernels ask for 66 kB of shared memory."""
    host.library.simt_allow_at_most(48 * 1024)
    try:
        with pytest.raises(KernelError) as refused:
            host.aligned_attention(torch.ones(1, 4, 384, dtype=torch.float16), torch.zeros(1, 4), 0, 1)
        assert refused.value.code == INVALID_VALUE
    finally:
        host.library.simt_allow_at_most(99 * 1024)


def test_a_call_that_failed_does_not_fail_the_next_one() -> None:
    host = load("host")
    refuse_heads_of_128(host)
    assert host.library.simt_last_error() == 0
    host.aligned_attention(torch.ones(1, 4, 96, dtype=torch.float16), torch.zeros(1, 4), 0, 1)


def test_an_error_of_the_callers_neither_fails_a_call_nor_is_lost() -> None:
    host = load("host")
    context, column, class_score = host.aligned_attention(torch.rand(1, 9, 24), torch.zeros(1, 9), 0, 1)
    ids, alignment = torch.arange(9, dtype=torch.int32)[None], torch.rand(1, 8, 2)
    host.library.simt_leave_error(NOT_SUPPORTED)
    try:
        host.aligned_attention(torch.rand(1, 9, 24), torch.zeros(1, 9), 0, 1)
        host.token_compact(
            context, torch.zeros(1, 9), ids, column, class_score, alignment, torch.tensor(0.5), torch.tensor(1), 0
        )
        assert host.library.simt_last_error() == NOT_SUPPORTED
    finally:
        host.library.simt_leave_error(0)


def test_bfloat16_attention_is_skipped_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = load("host")
    kernels.require(torch.bfloat16)
    kernels.device = "cuda"
    for capability, lacking in (((7, 5), True), ((8, 0), False), ((12, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        assert kernels.supports(torch.bfloat16) is not lacking
        assert kernels.supports(torch.float16)
        if lacking:
            with pytest.raises(pytest.skip.Exception, match=r"needs compute capability 8\.0"):
                kernels.require(torch.bfloat16)
