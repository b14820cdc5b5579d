"""The packed ops: every sequence as if it were alone, whatever else is in the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from madtp.ops.packed import packed_aligned_attention, packed_token_compact, spans, varlen_attention
from madtp.ops.reference import aligned_attention, token_compact
from tests.helpers.packed_calls import attention_call, compact_call, cu_seqlens, varlen_call

LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 10**6), spare=st.integers(0, 3))
def test_attention_is_that_of_every_sequence_alone(lengths: list[int], seed: int, spare: int) -> None:
    qkv, mask, cu, causal, heads = attention_call(lengths, 2, 4, seed, spare)
    context, column, of_class = packed_aligned_attention(qkv, mask, cu, causal, heads)
    for rows in spans(cu):
        alone = aligned_attention(qkv[None, rows], mask[None, rows], causal, heads)
        assert torch.equal(context[rows], alone[0][0])
        body = slice(rows.start + 1, rows.stop)
        assert torch.equal(column[body], alone[1][0])
        assert torch.equal(of_class[body], alone[2][0])
        assert column[rows.start] == of_class[rows.start] == 0


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 20), min_size=1, max_size=5),
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 4.0, float("nan")]),
    min_keep=st.integers(1, 4),
    margin=st.sampled_from([0.0, 0.3]),
)
def test_a_request_of_one_sequence_is_compacted_as_the_reference_does_alone(
    lengths: list[int], seed: int, temperature: float, min_keep: int, margin: float
) -> None:
    call = compact_call(lengths, seed, temperature=temperature, min_keep=min_keep, margin=margin, spare=2)
    compacted, mask, ids, cu, count = packed_token_compact(*call)
    assert int(count) == len(compacted) == int(cu[-1])
    for before, after in zip(spans(call[6]), spans(cu), strict=True):
        body = slice(before.start + 1, before.stop)
        alone = token_compact(
            *(column[None, before] for column in call[:3]),
            *(column[None, body] for column in call[3:6]),
            call[7],
            torch.tensor(min_keep),
            3,
            margin,
        )
        for found, expected in zip((compacted, mask, ids), alone, strict=False):
            assert torch.equal(found[after], expected[0])


def compacted_lengths(cu: Tensor) -> list[int]:
    return cu.diff().tolist()


@pytest.mark.parametrize("seed", range(5))
def test_sequences_of_a_request_keep_equally_many(seed: int) -> None:
    call = compact_call([20] * 6, seed, temperature=1.0, group=2)
    alone = compact_call([20] * 6, seed, temperature=1.0, group=1)
    lengths = compacted_lengths(packed_token_compact(*call)[3])
    each = compacted_lengths(packed_token_compact(*alone)[3])
    assert lengths == [max(each[s % 3], each[s % 3 + 3]) for s in range(6)]


def test_a_capacity_that_is_too_small_is_told_by_the_count() -> None:
    exact = packed_token_compact(*compact_call([20, 20, 20], 0, temperature=1.0))
    needed = int(exact[4])
    fitting = packed_token_compact(*compact_call([20, 20, 20], 0, temperature=1.0, capacity=needed + 5))
    assert int(fitting[4]) == needed
    assert torch.equal(fitting[3], exact[3])
    assert torch.equal(fitting[0][:needed], exact[0])
    assert len(fitting[0]) == needed + 5
    short = packed_token_compact(*compact_call([20, 20, 20], 0, temperature=1.0, capacity=needed - 5))
    assert int(short[4]) == needed
    assert int(short[3].max()) == len(short[0]) == needed - 5


def test_nan_of_a_request_does_not_reach_the_others() -> None:
    call = list(compact_call([12, 15, 9], 1, temperature=1.0))
    clean = packed_token_compact(*call)
    first, second, third = spans(clean[3])
    for index in (0, 3, 4, 5):
        call[index] = call[index].clone()
        call[index][12:27] = float("nan")
    broken = packed_token_compact(*call)
    assert compacted_lengths(broken[3])[1] == 15  # a score that is not finite throws nothing away
    assert torch.equal(broken[0][first], clean[0][first])
    moved = list(spans(broken[3]))[2]
    assert torch.equal(broken[0][moved], clean[0][third])
    assert second.stop - second.start < 15


def test_attention_to_other_sequences_sees_its_own_alone() -> None:
    call = varlen_call([3, 5, 2], [4, 1, 7], heads=2, size=4, seed=0)
    together = varlen_attention(*call)
    for rows, keys in zip(spans(call[2]), spans(call[3]), strict=True):
        length, other = rows.stop - rows.start, keys.stop - keys.start
        alone = varlen_attention(call[0][rows], call[1][keys], cu_seqlens([length]), cu_seqlens([other]), 2)
        assert torch.equal(together[rows], alone)


def test_attention_to_nothing_is_zero() -> None:
    query, key_value, cu, keys, heads = varlen_call([3, 5], [0, 4], heads=2, size=4, seed=0)
    assert not varlen_attention(query, key_value, cu, keys, heads)[:3].any()
