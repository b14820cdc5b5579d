"""The CPU kernels of the packed ops: every sequence as if it were alone, with every instruction set here."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from madtp.ops.packed import packed_token_compact, spans, varlen_attention
from madtp.ops.spec import EXACT, INCOMING, PACKED_ATTENTION, PACKED_COMPACT, VARLEN_ATTENTION, OpSpec
from tests.helpers.compaction_checks import (
    check_any_compaction,
    check_margins,
    check_not_finite,
    check_nothing_or_everything,
)
from tests.helpers.kernel_calls import attention_inputs, bits, check_attention, is_decided
from tests.helpers.kernel_calls import compact_call as batch_call
from tests.helpers.kernels import Compacted, check_accuracy
from tests.helpers.native_build import build
from tests.helpers.onnxruntime_ops import FLAGS, OnnxRuntimeOps, instruction_sets, library
from tests.helpers.packed_calls import attention_call, compact_call, cu_seqlens, varlen_call

INFINITY, NAN = float("inf"), float("nan")
RAGGED = (130, 0, 1, 97, 2, 48, 3)  # more than a block of queries, none, a class token alone, ...
LENGTHS = st.lists(st.one_of(st.integers(0, 70), st.sampled_from([48, 49, 97, 130])), min_size=1, max_size=6)
SEEDS = st.integers(0, 10**6)


class Batches:
    """The packed kernels behind the interface of the dynamic ones: a batch is one request of as many sequences."""

    def __init__(self, ops: OnnxRuntimeOps) -> None:
        self.ops = ops

    def aligned_attention(self, qkv: Tensor, key_mask: Tensor, causal: int, heads: int) -> tuple[Tensor, ...]:
        batch, length = key_mask.shape
        call = (qkv.flatten(0, 1), key_mask.flatten(), cu_seqlens([length] * batch), causal, heads)
        context, *scores = (part.unflatten(0, (batch, length)) for part in self.ops.call(PACKED_ATTENTION, call))
        assert not any(score[:, 0].any() for score in scores)
        return context, *(score[:, 1:] for score in scores)

    def token_compact(self, *inputs: Any) -> Compacted:
        batch, length = inputs[1].shape
        # a class token has scores and alignments of its own here, which nobody reads
        scores = [torch.cat([part.new_full((batch, 1, *part.shape[2:]), NAN), part], dim=1) for part in inputs[3:6]]
        rows = [part.flatten(0, 1) for part in (*inputs[:3], *scores)]
        layer, margin = inputs[8], inputs[9] if len(inputs) > 9 else 0.0
        least = inputs[7].reshape(1)
        cu = cu_seqlens([length] * batch)
        *columns, after, count = self.ops.call(PACKED_COMPACT, (*rows, cu, inputs[6], least, 0, batch, layer, margin))
        assert after.diff().unique().numel() == 1
        assert int(count) == int(after[-1]) == len(columns[0])
        tokens, mask, ids = (part.unflatten(0, (batch, -1)) for part in columns)
        return Compacted(tokens, mask, ids, tokens.shape[1])


@pytest.fixture(scope="module", params=FLAGS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if request.param not in instruction_sets():
        pytest.skip(f"this processor has no {request.param}")
    with library(request.param, tmp_path_factory.mktemp(request.param)) as copy:
        yield copy


@pytest.fixture(scope="module")
def cpu(path: Path) -> OnnxRuntimeOps:
    return OnnxRuntimeOps(path)


@pytest.fixture(scope="module")
def batches(cpu: OnnxRuntimeOps) -> Any:
    return Batches(cpu)


@pytest.fixture(scope="module")
def best() -> OnnxRuntimeOps:
    """As it is loaded without a wish."""
    return OnnxRuntimeOps(build().onnxruntime)


def same(some: Tensor, other: Tensor) -> bool:
    """Equal in every bit."""
    return some.shape == other.shape and (
        some.numel() == 0 or torch.equal(bits(some.reshape(-1)), bits(other.reshape(-1)))
    )


def all_same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(same(one, other) for one, other in zip(some, others, strict=True))


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.one_of(st.integers(1, 70), st.sampled_from([97, 130])),
    heads=st.integers(1, 4),
    size=st.integers(1, 70),
    causal=st.booleans(),
    seed=SEEDS,
)
def test_attention_of_equal_sequences_is_the_references(
    batches: Any, batch: int, length: int, heads: int, size: int, causal: bool, seed: int
) -> None:
    qkv, mask, _, heads = attention_inputs(batch, length, heads, size, torch.float32, seed)
    check_attention(batches, qkv, mask, int(causal), heads)


@settings(max_examples=30, deadline=None)
@example(lengths=list(RAGGED), size=20, seed=0, spare=3)
@example(lengths=list(RAGGED), size=20, seed=1, spare=0)
@given(lengths=LENGTHS, size=st.integers(1, 40), seed=SEEDS, spare=st.integers(0, 3))
def test_attention_of_a_sequence_is_what_it_is_alone(
    cpu: OnnxRuntimeOps, lengths: list[int], size: int, seed: int, spare: int
) -> None:
    qkv, mask, cu, causal, heads = attention_call(lengths, 2, size, seed, spare)
    context, *scores = cpu.call(PACKED_ATTENTION, (qkv, mask, cu, causal, heads))
    for rows in spans(cu):
        if rows.stop > rows.start:
            alone = cpu.aligned_attention(qkv[None, rows], mask[None, rows], causal, heads)
            assert same(context[rows], alone[0][0])
            for score, expected in zip(scores, alone[1:], strict=True):
                assert score[rows.start] == 0
                assert same(score[rows][1:], expected[0])
    assert not any(part[int(cu[-1]) :].any() for part in (context, *scores))


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    tokens=st.one_of(st.integers(1, 70), st.just(300)),
    width=st.one_of(st.integers(8, 70), st.just(264)),
    entries=st.integers(1, 40),
    tau=st.sampled_from([0.01, 0.3, 1.0, 5.0, INFINITY, 0.0, -1.0, NAN]),
    min_keep=st.sampled_from([-5, 0, 1, 1, 1, 10, 2**62]),
    margin=st.sampled_from([0.0, 0.0, 0.3]),
    ties=st.sampled_from([0, 0, 2, 7]),
    seed=SEEDS,
)
def test_compaction_of_equal_sequences_is_the_references(
    batches: Any,
    batch: int,
    tokens: int,
    width: int,
    entries: int,
    tau: float,
    min_keep: int,
    margin: float,
    ties: int,
    seed: int,
) -> None:
    inputs = batch_call(batch, tokens, seed, torch.float32, tau, margin, width=width, entries=entries)
    inputs[7] = torch.tensor(min_keep)
    check_any_compaction(batches, inputs, ties)


def test_compaction_by_a_margin_and_of_nothing_and_of_what_is_not_finite(batches: Any) -> None:
    check_margins(batches)
    for keeps in ("nothing", "everything"):
        check_nothing_or_everything(batches, keeps, torch.float32)
    for index in (3, 4, 5):
        check_not_finite(batches, index, NAN)


def alone(call: Sequence[Any], rows: slice) -> tuple[Any, ...]:
    """TokenCompact's arguments for one sequence of a packed call, which is a request of its own."""
    body = slice(rows.start + 1, rows.stop)
    return (
        *(part[None, rows] for part in call[:3]),
        *(part[None, body] for part in call[3:6]),
        call[7],
        call[8][0],
        *call[11:],
    )


@settings(max_examples=30, deadline=None)
@example(lengths=list(RAGGED), seed=0, tau=0.7, min_keep=1, margin=0.0, spare=3)
@given(
    lengths=LENGTHS,
    seed=SEEDS,
    tau=st.sampled_from([0.3, 1.0, 4.0, 0.0]),
    min_keep=st.integers(1, 9),
    margin=st.sampled_from([0.0, 0.3]),
    spare=st.integers(0, 3),
)
def test_compaction_of_a_sequence_is_what_it_is_alone(
    cpu: OnnxRuntimeOps, lengths: list[int], seed: int, tau: float, min_keep: int, margin: float, spare: int
) -> None:
    call = compact_call(lengths, seed, temperature=tau, min_keep=min_keep, margin=margin, spare=spare)
    *columns, cu, count = cpu.call(PACKED_COMPACT, call)
    assert int(count) == int(cu[-1]) == len(columns[0])
    for before, after in zip(spans(call[6]), spans(cu), strict=True):
        if before.stop - before.start < 2:
            assert all_same([part[after] for part in columns], [part[before] for part in call[:3]])
            continue
        expected = cpu.token_compact(*alone(call, before))
        assert all_same([part[after] for part in columns], [expected.tokens[0], expected.mask[0], expected.ids[0]])


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    group=st.integers(1, 3),
    seed=SEEDS,
    tau=st.sampled_from([0.0, 0.3, 1.0, 4.0]),
    min_keep=st.integers(1, 4),
    room=st.sampled_from([None, -15, -3, 0, 4]),
)
def test_requests_and_capacities_are_the_references(
    cpu: OnnxRuntimeOps, lengths: list[int], group: int, seed: int, tau: float, min_keep: int, room: int | None
) -> None:
    call = list(compact_call(lengths * group, seed, temperature=tau, min_keep=min_keep, group=group, spare=2))
    call[5] = call[5].abs()  # else the alignment may add up to nearly nothing, and rounding decides
    assume(all(is_decided(alone(call, rows)) for rows in spans(call[6]) if rows.stop - rows.start > 1))
    if room is not None:
        call[9] = max(1, int(packed_token_compact(*call)[4]) + room)
    found, expected = cpu.call(PACKED_COMPACT, call), packed_token_compact(*call)
    for index in (1, 2, 3, 4):
        assert torch.equal(found[index], expected[index])
    exact = packed_token_compact(*(part.double() if index in (0, 3, 4, 5) else part for index, part in enumerate(call)))
    check_accuracy(found[0], expected[0], exact[0], torch.float32)


def test_any_capacity_is_a_beginning_of_what_is_exact(cpu: OnnxRuntimeOps) -> None:
    *exact, cu, count = cpu.call(PACKED_COMPACT, compact_call([20, 9, 1, 20], 1, temperature=1.0, group=2))
    needed = int(count)
    assert needed < 50
    for capacity in (INCOMING, *range(1, needed + 4)):
        rows = 55 if capacity == INCOMING else capacity
        call = compact_call([20, 9, 1, 20], 1, temperature=1.0, group=2, capacity=capacity, spare=5)
        *parts, clamped, told = cpu.call(PACKED_COMPACT, call)
        assert int(told) == needed
        assert torch.equal(clamped, cu.clamp(max=rows))
        for part, whole in zip(parts, exact, strict=True):
            assert len(part) == rows
            assert same(part[:needed], whole[:rows])
            assert not part[needed:].any()


def check_varlen(ops: OnnxRuntimeOps, call: tuple[Any, ...]) -> Tensor:
    (found,) = ops.call(VARLEN_ATTENTION, call)
    query, key_value = call[0].double(), call[1].double()
    looking = query.abs().nan_to_num().unflatten(1, (call[4], -1))
    keys = key_value[:, : query.shape[1]].abs().nan_to_num().unflatten(1, (call[4], -1))
    scores = torch.einsum("ihd,jhd->hij", looking, keys).flatten() / looking.shape[2] ** 0.5
    condition = max(scores.tolist(), default=0.0)
    expected, exact = varlen_attention(*call), varlen_attention(query, key_value, *call[2:])
    check_accuracy(found, expected, exact, torch.float32, condition)
    return found


@settings(max_examples=40, deadline=None)
@example(pairs=[(3, 5), (0, 7), (4, 0), (0, 0), (1, 1), (130, 97)], heads=3, size=20, seed=0, spare=2)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 100)), min_size=1, max_size=5),
    heads=st.integers(1, 3),
    size=st.integers(1, 70),
    seed=SEEDS,
    spare=st.integers(0, 2),
)
def test_attention_to_other_sequences_is_the_references(
    cpu: OnnxRuntimeOps, pairs: list[tuple[int, int]], heads: int, size: int, seed: int, spare: int
) -> None:
    lengths, keys = map(list, zip(*pairs, strict=True))
    call = varlen_call(lengths, keys, heads, size, seed, spare)
    found = check_varlen(cpu, call)
    assert not found[int(call[2][-1]) :].any()
    for rows, looked_at in zip(spans(call[2]), spans(call[3]), strict=True):
        length, count = rows.stop - rows.start, looked_at.stop - looked_at.start
        part = (call[0][rows], call[1][looked_at], cu_seqlens([length]), cu_seqlens([count]), heads)
        assert same(found[rows], cpu.call(VARLEN_ATTENTION, part)[0])
        assert count > 0 or not found[rows].any()


def moved(parts: Sequence[Tensor], cu: Tensor, order: Sequence[int]) -> list[Tensor]:
    """Rows with their sequences in another order."""
    rows = list(spans(cu))
    return [torch.cat([part[rows[s]] for s in order]) for part in parts]


def test_no_result_depends_on_slots_or_threads(path: Path) -> None:
    order = [4, 0, 6, 3, 1, 5, 2]
    lengths, keys = list(RAGGED), [50, 3, 8, 130, 9, 0, 1]
    qkv, mask, cu, _, heads = attention_call(lengths, 3, 20, 4)
    compact = compact_call(lengths, 4, temperature=0.7, width=70, entries=33)
    varlen = varlen_call(lengths, keys, 3, 20, 4)
    ops = OnnxRuntimeOps(path)
    attended, (looked,) = ops.call(PACKED_ATTENTION, (qkv, mask, cu, 0, heads)), ops.call(VARLEN_ATTENTION, varlen)
    *compacted, after, _ = ops.call(PACKED_COMPACT, compact)
    assert after[-1] < cu[-1]
    new_cu, new_keys = cu_seqlens([lengths[s] for s in order]), cu_seqlens([keys[s] for s in order])
    for threads, _ in itertools.product((1, 2, 4), range(3)):
        ops = OnnxRuntimeOps(path, threads)
        found = ops.call(PACKED_ATTENTION, (*moved((qkv, mask), cu, order), new_cu, 0, heads))
        assert all_same(found, moved(attended, cu, order))
        *found, _, _ = ops.call(PACKED_COMPACT, (*moved(compact[:6], cu, order), new_cu, *compact[7:]))
        assert all_same(found, moved(compacted, after, order))
        call = (*moved(varlen[:1], cu, order), *moved(varlen[1:2], varlen[3], order), new_cu, new_keys, heads)
        assert all_same(ops.call(VARLEN_ATTENTION, call), moved((looked,), cu, order))


def test_repeats_on_many_threads_are_the_same(best: OnnxRuntimeOps) -> None:
    calls: list[tuple[OpSpec, tuple[Any, ...]]] = [
        (PACKED_ATTENTION, attention_call(RAGGED * 2, 4, 16, 5)),
        (PACKED_COMPACT, compact_call(RAGGED * 2, 5, temperature=0.7, group=2, width=130)),
        (VARLEN_ATTENTION, varlen_call(RAGGED * 2, (60, 200) * 7, 4, 16, 5)),
    ]
    many = OnnxRuntimeOps(best.path, threads=4)
    for spec, call in calls:
        expected = best.call(spec, call)
        assert all(all_same(many.call(spec, call), expected) for _ in range(40))


@pytest.mark.parametrize("value", [NAN, INFINITY])
def test_what_is_not_finite_stays_in_its_sequence(cpu: OnnxRuntimeOps, value: float) -> None:
    lengths = (30, 55, 3)
    broken = slice(30, 85)
    others = torch.cat([torch.arange(30), torch.arange(85, 88)])
    attention = attention_call(lengths, 2, 12, 0)
    clean = cpu.call(PACKED_ATTENTION, attention)
    attention[0][40:50] = value
    found = cpu.call(PACKED_ATTENTION, attention)
    assert all_same([part[others] for part in found], [part[others] for part in clean])
    assert found[0][broken].isnan().all()
    assert found[1][31:85].isnan().all()
    looking = varlen_call(lengths, lengths, 2, 12, 0)
    (clean_looked,) = cpu.call(VARLEN_ATTENTION, looking)
    looking[1][40:50] = value
    (looked,) = cpu.call(VARLEN_ATTENTION, looking)
    assert same(looked[others], clean_looked[others])
    assert looked[broken].isnan().all()
    call = compact_call(lengths, 0, temperature=1.0)
    *clean, cu, _ = cpu.call(PACKED_COMPACT, call)
    for part in (call[3], call[4], call[5]):
        part[40:50] = value
    *found, new_cu, _ = cpu.call(PACKED_COMPACT, call)
    before, after = list(spans(cu)), list(spans(new_cu))
    assert after[1].stop - after[1].start == 55  # it throws nothing away
    for s in (0, 2):
        assert all_same([part[after[s]] for part in found], [part[before[s]] for part in clean])


def test_no_rows_and_no_sequences_have_empty_results(best: OnnxRuntimeOps) -> None:
    for lengths, spare in (((), 0), ((0, 0), 0), ((), 3), ((0,), 3)):
        found = best.call(PACKED_ATTENTION, attention_call(lengths, 2, 4, 0, spare))
        assert [tuple(part.shape) for part in found] == [(spare, 8), (spare,), (spare,)]
        assert not any(part.any() for part in found)
        (context,) = best.call(VARLEN_ATTENTION, varlen_call(lengths, lengths, 2, 4, 0, spare))
        assert context.shape == (spare, 8)
        assert not context.any()
        for capacity, rows in ((EXACT, 0), (INCOMING, sum(lengths) + spare), (5, 5)):
            call = compact_call(lengths, 0, temperature=1.0, capacity=capacity, spare=spare)
            *parts, cu, count = best.call(PACKED_COMPACT, call)
            assert [len(part) for part in parts] == [rows] * 3
            assert not cu.any()
            assert int(count) == 0


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4), seed=SEEDS, capacity=st.integers(-1, 50))
def test_any_bytes_are_survived(cpu: OnnxRuntimeOps, lengths: list[int], seed: int, capacity: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        raw = torch.randint(0, 256, (like.numel() * like.element_size(),), dtype=torch.uint8, generator=generator)
        return raw.view(like.dtype).reshape(like.shape)

    call = list(compact_call(lengths, seed, temperature=0.7, capacity=capacity))
    for index in torch.randperm(9, generator=generator)[: 1 + seed % 9].tolist():
        call[index] = call[index] if index == 6 else noise(call[index])
    *_, cu, count = cpu.call(PACKED_COMPACT, call)
    assert 0 <= int(cu[-1]) <= int(count) <= sum(lengths)
    qkv, mask, starts, causal, heads = attention_call(lengths, 2, 5, seed)
    cpu.call(PACKED_ATTENTION, (noise(qkv), noise(mask), starts, causal, heads))
    query, key_value, *rest = varlen_call(lengths, lengths[::-1], 2, 5, seed)
    cpu.call(VARLEN_ATTENTION, (noise(query), noise(key_value), *rest))
