"""The kernels of the packed ops: a sequence comes to what the dynamic ops' kernels make of it alone, bit for bit."""

import ctypes
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from madtp.ops import packed
from madtp.ops.library import (
    INVALID_VALUE,
    KernelError,
    PackedAttentionShape,
    PackedCompactShape,
    VarlenShape,
)
from madtp.ops.packed import spans
from tests.helpers.kernel_calls import bits, compact_call
from tests.helpers.kernels import Kernels, check_accuracy, libraries, load
from tests.helpers.packed_calls import attention_call, cu_seqlens, poisoned, varlen_call

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LENGTHS = st.lists(st.sampled_from([0, 1, 2, 3, 17, 63, 64, 65, 66, 129, 130]), min_size=1, max_size=5)
HEADS = st.sampled_from([(1, 8), (2, 12), (2, 32), (3, 32), (1, 64), (1, 72), (1, 128), (1, 256)])


@pytest.fixture(scope="module", params=libraries())
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return load(request.param)


def same(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.equal(bits(left.cpu()), bits(right.cpu()))


def check_attention(kernels: Kernels, call: Sequence[Any]) -> None:
    """Every sequence is that of the dynamic kernels, and nothing is written behind the last."""
    qkv, mask, cu, causal, heads = call
    context, column, of_class = kernels.packed_aligned_attention(*call)
    for rows in spans(cu):
        if rows.stop == rows.start:
            continue
        alone = kernels.aligned_attention(qkv[None, rows], mask[None, rows], causal, heads)
        assert same(context[rows], alone[0][0])
        assert not column[rows.start]
        assert not of_class[rows.start]
        body = slice(rows.start + 1, rows.stop)
        assert same(column[body], alone[1][0])
        assert same(of_class[body], alone[2][0])
    for output in (context, column, of_class):
        assert (bits(output[int(cu[-1]) :]) == 0xFF).all()


@settings(max_examples=25, deadline=None)
@given(
    lengths=LENGTHS, shape=HEADS, dtype=st.sampled_from(DTYPES), seed=st.integers(0, 10**6), spare=st.integers(0, 70)
)
def test_attention_of_a_sequence_is_that_of_the_dynamic_kernels(
    kernels: Kernels, lengths: list[int], shape: tuple[int, int], dtype: torch.dtype, seed: int, spare: int
) -> None:
    kernels.seed(seed % 1000)
    if sum(lengths) and kernels.supports(dtype):
        check_attention(kernels, attention_call(lengths, *shape, seed, spare, dtype))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 32), (torch.bfloat16, 64)])
def test_many_sequences_take_larger_tiles_and_give_the_same_bits(
    kernels: Kernels, dtype: torch.dtype, size: int
) -> None:
    kernels.require(dtype)
    lengths = [200, *[0] * 130, 70, 1]
    assert 2 * len(lengths) >= 256 > 2 * 2  # where launch_head_size turns to tiles of 128 queries, and where not
    check_attention(kernels, attention_call(lengths, 2, size, 2, 1, dtype))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 8), (torch.float16, 32)])
def test_a_long_sequence_shares_places_for_its_column_sums(kernels: Kernels, dtype: torch.dtype, size: int) -> None:
    """More than 16 groups of 64 queries: another order of additions than the dynamic kernels have, and as accurate."""
    qkv, mask, cu, _, heads = attention_call([1040, 5], 1, size, 0, 0, dtype)
    long = slice(0, 1040)
    found = kernels.packed_aligned_attention(qkv, mask, cu, 0, heads)
    dynamic = kernels.aligned_attention(qkv[None, long], mask[None, long], 0, heads)
    assert same(found[0][long], dynamic[0][0])
    assert same(found[2][1:1040], dynamic[2][0])
    torch.testing.assert_close(found[1][1:1040], dynamic[1][0], rtol=1e-5, atol=1e-6)
    alone = kernels.packed_aligned_attention(qkv[long], mask[long], cu_seqlens([1040]), 0, heads)
    for together, one in zip(found, alone, strict=True):
        assert same(together[long], one)


def packed_compact_call(
    lengths: Sequence[int], seed: int, dtype: torch.dtype, tau: float, spare: int = 0, requests: int | None = None
) -> list[Any]:
    """The nine tensors of PackedTokenCompact, random; alignments are positive, so that rounding does not decide."""
    one = compact_call(1, sum(lengths), seed, dtype, tau, width=24, entries=33)[:6]
    tokens, mask, ids, column, of_class, alignment = (tensor[0] for tensor in one)
    tokens, mask, ids = tokens[1:], mask[1:], ids[1:] - 1
    floats = [poisoned(part, spare) for part in (tokens, mask, column, of_class, alignment)]
    least = torch.ones(requests or len(lengths), dtype=torch.int64)
    ids = torch.cat([ids, ids.new_zeros(spare)])
    return [*floats[:2], ids, *floats[2:], cu_seqlens(lengths), torch.tensor(tau), least]


def check_alone(kernels: Kernels, inputs: list[Any], found: tuple[Any, ...], margin: float = 0.0) -> None:
    """Every sequence of two rows and more, a request of its own, is that of the dynamic kernels."""
    compacted, mask, ids, cu, count = found
    assert count == int(cu[-1])
    for before, after in zip(spans(inputs[6]), spans(cu), strict=True):
        length, body = before.stop - before.start, slice(before.start + 1, before.stop)
        if length < 2:
            assert after.stop - after.start == length
            assert same(compacted[after], inputs[0][before])
            continue
        columns = [tensor[None, before] for tensor in inputs[:3]] + [tensor[None, body] for tensor in inputs[3:6]]
        alone = kernels.token_compact(*columns, inputs[7], torch.tensor(1), 3, margin)
        assert after.stop - after.start == alone.count
        for got, expected in ((compacted, alone.tokens), (mask, alone.mask), (ids, alone.ids)):
            assert same(got[after], expected[0])
    for output in (compacted, mask, ids):
        assert (bits(output[count:]) == 0xFF).all()


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 3, 4, 31, 256, 257, 258, 300]), min_size=1, max_size=5),
    dtype=st.sampled_from(DTYPES),
    tau=st.sampled_from([0.3, 0.7, 5.0, 0.0, float("nan")]),
    margin=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 10**6),
    spare=st.integers(0, 20),
)
def test_compaction_of_a_sequence_is_that_of_the_dynamic_kernels(
    kernels: Kernels, lengths: list[int], dtype: torch.dtype, tau: float, margin: float, seed: int, spare: int
) -> None:
    kernels.seed(seed % 1000)
    if not sum(lengths):
        return
    inputs = packed_compact_call(lengths, seed, dtype, tau, spare)
    room = sum(lengths) + seed % 3
    check_alone(kernels, inputs, kernels.packed_token_compact(*inputs, keep_margin=margin, capacity=room), margin)


def kept(cu: Tensor) -> list[int]:
    return cu.cpu().diff().tolist()


def test_sequences_of_a_request_keep_equally_many(kernels: Kernels) -> None:
    lengths = [40, 30, 50, 40, 30, 2]
    inputs = packed_compact_call(lengths, 2, torch.float32, 0.7)
    alone = kept(kernels.packed_token_compact(*inputs, capacity=200)[3])
    inputs[8] = torch.ones(3, dtype=torch.int64)
    together = kernels.packed_token_compact(*inputs, capacity=200, group=2)
    expected = packed.packed_token_compact(*inputs, 200, 2, 3)
    assert together[4] == int(expected[4])
    for got, wanted in zip(together[1:4], expected[1:4], strict=True):
        assert same(got[: len(wanted)][: together[4]].cpu(), wanted[: together[4]])
    torch.testing.assert_close(together[0][: together[4]].cpu(), expected[0][: together[4]])
    assert kept(together[3])[:2] == [max(alone[0], alone[3]), max(alone[1], alone[4])] != alone[:2]
    assert kept(together[3])[5] == 2  # it has nothing to throw away, and its twin asks for more than it has


def test_too_few_to_keep_leave_a_request_alone(kernels: Kernels) -> None:
    inputs = packed_compact_call([40, 40], 1, torch.float32, 0.7)
    inputs[8] = torch.tensor([1, 40])
    lengths = kept(kernels.packed_token_compact(*inputs, capacity=80)[3])
    assert lengths[0] < lengths[1] == 40


@pytest.mark.parametrize("missing", [1, 7, 30, 61])
def test_rows_beyond_a_capacity_are_counted_and_not_written(kernels: Kernels, missing: int) -> None:
    inputs = packed_compact_call([40, 30, 50], 1, torch.float16, 0.7)
    whole = kernels.packed_token_compact(*inputs, capacity=120)
    room = whole[4] - missing
    short = kernels.packed_token_compact(*inputs, capacity=room)  # Kernels looks at the guards
    assert short[4] == whole[4]
    assert short[3].tolist() == whole[3].clamp(max=room).tolist()
    fitting = int(max(end for end in whole[3].tolist() if end <= room))
    for got, expected in zip(short[:3], whole[:3], strict=True):
        assert same(got[:fitting], expected[:fitting])


def test_nan_of_a_request_does_not_reach_the_others(kernels: Kernels) -> None:
    inputs = packed_compact_call([40, 30, 50], 1, torch.float32, 0.7)
    clean = kernels.packed_token_compact(*inputs, capacity=120)
    for index in (0, 3, 4, 5):
        inputs[index][40:70] = torch.nan
    broken = kernels.packed_token_compact(*inputs, capacity=120)
    (first, _, third), (_, _, moved) = spans(clean[3]), spans(broken[3])
    assert kept(broken[3])[1] == 30  # a score that is not finite throws nothing away
    assert same(broken[0][first], clean[0][first])
    assert same(broken[0][moved], clean[0][third])


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(
        st.tuples(st.sampled_from([0, 1, 5, 64, 70]), st.sampled_from([0, 1, 63, 65])), min_size=1, max_size=4
    ),
    shape=HEADS,
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 10**6),
    spare=st.integers(0, 3),
)
def test_varlen_attention_is_the_references(
    kernels: Kernels,
    lengths: list[tuple[int, int]],
    shape: tuple[int, int],
    dtype: torch.dtype,
    seed: int,
    spare: int,
) -> None:
    kernels.seed(seed % 1000)
    rows, keys = zip(*lengths, strict=True)
    if not sum(rows) or not kernels.supports(dtype):
        return
    query, key_value, *ends = varlen_call(rows, keys, *shape, seed, spare)
    query, key_value = query.to(dtype), key_value.to(dtype)
    got = kernels.varlen_attention(query, key_value, *ends)
    assert (bits(got[sum(rows) :]) == 0xFF).all()
    expected = packed.varlen_attention(query, key_value, *ends)[: sum(rows)]
    exact = packed.varlen_attention(query.double(), key_value.double(), *ends)[: sum(rows)]
    check_accuracy(got[: sum(rows)], expected, exact, dtype, condition=float(4 * shape[1]))
    for own, seen in zip(spans(ends[0]), spans(ends[1]), strict=True):
        length = own.stop - own.start
        if length == 0:
            continue
        ends_alone = cu_seqlens([length]), cu_seqlens([seen.stop - seen.start])
        alone = kernels.varlen_attention(query[own], key_value[seen], *ends_alone, shape[0])
        assert same(got[own], alone)


def test_varlen_attention_of_many_sequences_gives_the_same_bits(kernels: Kernels) -> None:
    query, key_value, cu, keys, heads = varlen_call([150, 2, *[0] * 130], [5, 66, *[3] * 130], 2, 32, 0)
    query, key_value = query.half(), key_value.half()
    together = kernels.varlen_attention(query, key_value, cu, keys, heads)
    for own, seen in list(zip(spans(cu), spans(keys), strict=True))[:2]:
        ends = cu_seqlens([own.stop - own.start]), cu_seqlens([seen.stop - seen.start])
        assert same(together[own], kernels.varlen_attention(query[own], key_value[seen], *ends, heads))


@settings(max_examples=40, deadline=None)
@given(
    ends=st.lists(st.sampled_from([-(2**31), -5, 0, 1, 3, 40, 64, 99, 100, 101, 2**31 - 1]), min_size=2, max_size=7),
    capacity=st.integers(1, 120),
    seed=st.integers(0, 10**6),
)
def test_any_ends_of_sequences_stay_inside_the_buffers(
    kernels: Kernels, ends: list[int], capacity: int, seed: int
) -> None:
    """Ends that do not ascend, and outside of the rows; `Kernels` looks at the guards."""
    kernels.seed(seed % 1000)
    cu, dtype = torch.tensor(ends, dtype=torch.int32), DTYPES[seed % 2]
    qkv, mask, _, causal, heads = attention_call([100], 1, 32, seed, dtype=dtype)
    kernels.packed_aligned_attention(qkv, mask, cu, causal, heads)
    inputs = packed_compact_call([100], seed, dtype, 0.7)
    inputs[6], inputs[8] = cu, torch.ones(len(ends) - 1, dtype=torch.int64)
    new = kernels.packed_token_compact(*inputs, capacity=capacity)[3].tolist()
    assert new == sorted(new)
    assert 0 <= new[0] <= new[-1] <= capacity
    query, key_value = attention_call([100], 1, 32, seed, dtype=dtype)[0].split([32, 64], dim=1)
    kernels.varlen_attention(query, key_value, cu, cu.flip(0), 1)


ATTENTION, COMPACT, VARLEN = (9, 3, 16, 2, 0, 0), (9, 4, 2, 16, 4, 0, 9, 0), (9, 9, 3, 16, 2, 0)
BAD_ATTENTION = [(0, 0), (0, 2**24 + 1), (1, 0), (1, 65536), (2, 12), (3, 3), (4, 2), (5, 3)]
BAD_COMPACT = [(0, 0), (1, 0), (1, 65536), (1, 3), (2, 0), (3, 12), (4, 0), (5, -1), (6, 0), (6, 2**24 + 1), (7, 3)]
BAD_VARLEN = [(0, 0), (1, -1), (2, 0), (2, 65536), (3, 12), (4, 3), (5, 3)]
BAD = [
    ("packed_aligned_attention", PackedAttentionShape, ATTENTION, 7, BAD_ATTENTION),
    ("packed_token_compact", PackedCompactShape, COMPACT, 15, BAD_COMPACT),
    ("varlen_attention", VarlenShape, VARLEN, 5, BAD_VARLEN),
]


@pytest.mark.parametrize(("op", "kind", "good", "pointers", "bad"), BAD)
def test_sizes_and_pointers_outside_the_contract_are_refused(
    kernels: Kernels, op: str, kind: Any, good: tuple[int, ...], pointers: int, bad: list[tuple[int, int]]
) -> None:
    memory = torch.full((1 << 16,), 0x5A, dtype=torch.uint8, device=kernels.device)
    compact = op == "packed_token_compact"

    def call(shape: Any, places: list[int]) -> int:
        if not compact:
            return getattr(kernels.library, f"madtp_{op}")(ctypes.byref(shape), *places, None)
        given, wanted = ((ctypes.c_void_p * count)(*part) for count, part in ((9, places[:9]), (5, places[9:14])))
        return kernels.library.madtp_packed_token_compact(
            *(ctypes.byref(part) for part in (shape, given, wanted)), 0.0, places[14], None
        )

    places = [memory.data_ptr() + 4096 * index for index in range(pointers)]
    for index, value in bad:
        shape = kind(*good[:index], value, *good[index + 1 :])
        assert call(shape, places) == INVALID_VALUE, (index, value)
        if op != "varlen_attention":
            assert getattr(kernels.library, f"madtp_{op}_workspace")(ctypes.byref(shape)) == 0
    for index in range(pointers):
        for wrong in (0, places[index] + 2):
            assert call(kind(*good), [*places[:index], wrong, *places[index + 1 :]]) == INVALID_VALUE, index
    assert (memory == 0x5A).all()


def test_workspace_is_as_documented(kernels: Kernels) -> None:
    for rows, sequences, heads in ((1, 1, 1), (65, 3, 2), (5000, 128, 12)):
        shape = PackedAttentionShape(rows, sequences, 96, heads, 0, 1)
        size = kernels.library.madtp_packed_aligned_attention_workspace(ctypes.byref(shape))
        assert size == 4 * rows * (4 * heads + min(16, -(-rows // 64)))


@pytest.mark.parametrize("margin", [-0.1, float("inf"), float("nan")])
def test_a_margin_that_is_no_margin_is_refused(kernels: Kernels, margin: float) -> None:
    inputs = packed_compact_call([9], 0, torch.float32, 0.7)
    with pytest.raises(KernelError) as refused:
        kernels.packed_token_compact(*inputs, capacity=9, keep_margin=margin)
    assert refused.value.code == INVALID_VALUE
