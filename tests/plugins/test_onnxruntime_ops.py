"""The CPU kernels of the library for ONNX Runtime against the torch reference, with every instruction set here."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from madtp.ops import reference as ops
from madtp.ops.spec import ALIGNED_ATTENTION, KEEP_MARGIN, TOKEN_COMPACT
from tests.helpers import recorded
from tests.helpers.compaction_checks import (
    check_any_compaction,
    check_margins,
    check_not_finite,
    check_nothing_or_everything,
    check_random_calls,
)
from tests.helpers.kernel_calls import (
    attention_inputs,
    bits,
    check_attention,
    check_compact,
    compact_call,
)
from tests.helpers.native_build import build
from tests.helpers.onnxruntime_ops import FLAGS, OnnxRuntimeOps, instruction_sets, library
from tests.helpers.paths import CARRIED

INFINITY, NAN = float("inf"), float("nan")
LOWEST = torch.finfo(torch.float32).min
BLOCK = 48  # queries of one task


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
def best() -> OnnxRuntimeOps:
    """As it is loaded without a wish."""
    return OnnxRuntimeOps(build().onnxruntime)


@pytest.fixture(scope="module")
def layers() -> list[recorded.Calls]:
    """The calls in recorded cases: the same for every instruction set."""
    return [calls for _, calls in recorded.replayed(CARRIED)]


def same_bits(some: Any, others: Any) -> bool:
    return all(torch.equal(bits(one), bits(other)) for one, other in zip(some, others, strict=True))


def test_ops_agree_in_every_layer_of_recorded_cases(cpu: OnnxRuntimeOps, layers: list[recorded.Calls]) -> None:
    for case in layers:
        assert len(case.attention) == len(case.compact) > 0
        for call in case.attention:
            check_attention(cpu, *call)
    pruned = sum(check_compact(cpu, call).count < call[0].shape[1] for case in layers for call in case.compact)
    assert pruned > 0


@settings(max_examples=60, deadline=None)
@example(batch=1, length=2, heads=1, size=8, causal=False, seed=400).via("all keys are masked")
@given(
    batch=st.integers(1, 3),
    length=st.one_of(st.integers(1, 70), st.sampled_from([BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1, 129, 173])),
    heads=st.integers(1, 4),
    size=st.one_of(st.integers(1, 100), st.sampled_from([8, 16, 24, 32, 64])),
    causal=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_attention_at_any_size(
    cpu: OnnxRuntimeOps, batch: int, length: int, heads: int, size: int, causal: bool, seed: int
) -> None:
    qkv, mask, _, heads = attention_inputs(batch, length, heads, size, torch.float32, seed)
    check_attention(cpu, qkv, mask, int(causal), heads)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("masked", [1, 47, 48, 49, 130])
@pytest.mark.parametrize("value", [-10000.0, -1e9, LOWEST, -INFINITY])
def test_attention_with_leading_or_all_keys_masked(cpu: OnnxRuntimeOps, masked: int, value: float, causal: int) -> None:
    qkv, mask, _, heads = attention_inputs(1, 130, 1, 24, torch.float32, 5)
    mask[:] = 0
    mask[:, :masked] = value
    check_attention(cpu, qkv, mask, causal, heads)


@pytest.mark.parametrize("size", [0.0, 40.0, 4e4])
def test_large_scores_are_right(cpu: OnnxRuntimeOps, size: float) -> None:
    """All that is left of a row may be one key, or the differences of scores that are far from zero."""
    qkv, mask, causal, heads = attention_inputs(1, 60, 2, 16, torch.float32, 8)
    qkv[..., :32] *= size
    check_attention(cpu, qkv, mask, causal, heads)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
def test_what_is_not_finite_is_not_swallowed_by_attention(cpu: OnnxRuntimeOps, value: float, causal: int) -> None:
    # a value that is not finite stays hidden from the queries before it, whose context the reference makes NaN
    for part, row in itertools.product(range(2 if causal else 3), (0, 3, 48, 66)):
        qkv, mask, _, heads = attention_inputs(2, 67, 2, 12, torch.float32, 6)
        qkv[1, row, part * 24 + 2] = value
        results = cpu.aligned_attention(qkv, mask, causal, heads)
        for got, reference in zip(results, ops.aligned_attention(qkv, mask, causal, heads), strict=True):
            assert torch.equal(got.isnan(), reference.isnan()), (part, row)
    mask[1, 5] = value
    for got, reference in zip(
        cpu.aligned_attention(qkv, mask, causal, heads), ops.aligned_attention(qkv, mask, causal, heads), strict=True
    ):
        assert torch.equal(got.isnan(), reference.isnan())


@pytest.mark.parametrize("length", [7, 67, 130])
def test_attention_depends_on_neither_batch_mates_nor_threads(path: Path, length: int) -> None:
    qkv, mask, causal, heads = attention_inputs(5, length, 3, 20, torch.float32, 1)
    together = OnnxRuntimeOps(path).aligned_attention(qkv, mask, causal, heads)
    order = [3, 0, 4, 1, 2]
    for threads, _ in itertools.product((1, 2, 4), range(3)):
        runner = OnnxRuntimeOps(path, threads)
        assert same_bits(runner.aligned_attention(qkv, mask, causal, heads), together)
        moved = runner.aligned_attention(qkv[order], mask[order], causal, heads)
        assert same_bits([part[order] for part in together], moved)
        for slot in range(5):
            alone = runner.aligned_attention(qkv[slot : slot + 1], mask[slot : slot + 1], causal, heads)
            assert same_bits([part[slot : slot + 1] for part in together], alone)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.one_of(st.integers(1, 4), st.just(33)),
    tokens=st.one_of(st.sampled_from([1, 2, 3, 31, 32, 33, 576]), st.integers(1, 300)),
    width=st.one_of(st.integers(8, 70), st.sampled_from([8, 24, 264, 520])),
    entries=st.one_of(st.integers(1, 40), st.just(100)),
    tau=st.sampled_from([0.01, 0.3, 1.0, 5.0, 1e30, INFINITY, 0.0, -0.0, -1.0, -INFINITY, NAN]),
    min_keep=st.sampled_from([-5, 0, 1, 1, 1, 10, 2**62]),
    margin=st.sampled_from([0.0, 0.0, 0.02, 0.3, 1.0, 1e30]),
    ties=st.sampled_from([0, 0, 1, 2, 7]),
    seed=st.integers(0, 2**31),
)
def test_compaction_of_anything_is_the_references(
    cpu: OnnxRuntimeOps,
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
    batch = batch if tokens < 40 else 1 + batch % 3
    inputs = compact_call(batch, tokens, seed, torch.float32, tau, margin, width=width, entries=entries)
    inputs[7] = torch.tensor(min_keep)
    check_any_compaction(cpu, inputs, ties)


def test_random_compactions_are_mostly_decided_and_pruned(cpu: OnnxRuntimeOps) -> None:
    check_random_calls(cpu)


def test_a_margin_keeps_more_until_nothing_is_pruned(cpu: OnnxRuntimeOps) -> None:
    check_margins(cpu)


@pytest.mark.parametrize("keeps", ["nothing", "everything"])
def test_keeping_nothing_or_everything_changes_nothing(cpu: OnnxRuntimeOps, keeps: str) -> None:
    check_nothing_or_everything(cpu, keeps, torch.float32)


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("index", [3, 4, 5], ids=["column", "class", "alignment"])
def test_a_score_that_is_not_finite_leaves_all_tokens(cpu: OnnxRuntimeOps, index: int, value: float) -> None:
    check_not_finite(cpu, index, value)


def test_compaction_depends_on_neither_threads_nor_repeats(path: Path) -> None:
    inputs = compact_call(3, 260, 4, torch.float32, width=264, entries=33)
    first = OnnxRuntimeOps(path).token_compact(*inputs)
    assert first.count < 261
    for threads, _ in itertools.product((1, 2, 4), range(5)):
        again = OnnxRuntimeOps(path, threads).token_compact(*inputs)
        assert same_bits((first.tokens, first.mask, first.ids), (again.tokens, again.mask, again.ids))


def test_a_sample_is_compacted_the_same_in_any_slot(cpu: OnnxRuntimeOps) -> None:
    inputs = compact_call(1, 100, 4, torch.float32, width=70, entries=33)
    alone = cpu.token_compact(*inputs)
    assert alone.count < 101
    repeated = [part.repeat(5, *[1] * (part.dim() - 1)) for part in inputs[:6]]
    together = cpu.token_compact(*repeated, *inputs[6:])
    for got, expected in ((together.tokens, alone.tokens), (together.mask, alone.mask), (together.ids, alone.ids)):
        for sample in got:
            assert torch.equal(bits(sample), bits(expected[0]))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 80), st.integers(0, 2**31))
def test_any_bytes_are_survived(cpu: OnnxRuntimeOps, batch: int, tokens: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        size = (like.numel() * like.element_size(),)
        raw = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
        return raw.view(like.dtype).reshape(like.shape)

    inputs = compact_call(batch, tokens, seed, torch.float32)
    for index in torch.randperm(8, generator=generator)[: 1 + seed % 8].tolist():
        inputs[index] = noise(inputs[index])
    assert 2 <= cpu.token_compact(*inputs).count <= tokens + 1
    qkv, mask, causal, heads = attention_inputs(batch, tokens, 2, 5, torch.float32, seed)
    cpu.aligned_attention(noise(qkv), noise(mask), causal, heads)


def test_the_instruction_set_can_be_chosen(tmp_path: Path) -> None:
    """Without fused multiplications other bits come out: the lesser set was really taken."""
    if "avx2" not in instruction_sets():
        pytest.skip("this processor has one instruction set only")
    call = attention_inputs(1, 30, 2, 16, torch.float32, 3)
    with library("baseline", tmp_path) as baseline, library("avx2", tmp_path) as avx2:
        contexts = [OnnxRuntimeOps(path).aligned_attention(*call)[0] for path in (baseline, avx2)]
    assert not torch.equal(*contexts)


def test_the_library_goes_before_the_bodies_of_a_file(best: OnnxRuntimeOps) -> None:
    kernels, bodies = OnnxRuntimeOps(best.path, bodies=True), OnnxRuntimeOps(None)
    call = attention_inputs(2, 50, 3, 16, torch.float32, 2)
    assert same_bits(kernels.aligned_attention(*call), best.aligned_attention(*call))
    assert not same_bits(bodies.aligned_attention(*call), best.aligned_attention(*call))
    check_attention(bodies, *call)
    compaction = tuple(compact_call(2, 100, 2, torch.float32, 0.7, 0.05))
    assert kernels.token_compact(*compaction).count == bodies.token_compact(*compaction).count < 101


def test_empty_batches_have_empty_results(best: OnnxRuntimeOps) -> None:
    context, column, class_score = best.aligned_attention(torch.zeros(0, 5, 12), torch.zeros(0, 5), 0, 2)
    assert (context.shape, column.shape, class_score.shape) == ((0, 5, 4), (0, 4), (0, 4))
    nothing = [entry[:0] for entry in compact_call(1, 6, 0, torch.float32)[:6]]
    assert best.token_compact(*nothing, torch.tensor(0.7), torch.tensor(1), 0).tokens.shape == (0, 7, 8)


BAD_ATTENTION = {
    "rank": ((2, 24), (2, 5), r"qkv of AlignedAttention is \[2, 24\]"),
    "width": ((2, 5, 25), (2, 5), r"qkv of AlignedAttention is \[2, 5, 25\]; .* a multiple of 2 heads"),
    "no width": ((2, 5, 0), (2, 5), r"qkv of AlignedAttention is \[2, 5, 0\]"),
    "no tokens": ((2, 0, 24), (2, 0), r"qkv of AlignedAttention is \[2, 0, 24\]"),
    "mask": ((2, 5, 24), (2, 6), r"key_mask of AlignedAttention is \[2, 6\]; qkv asks for \[2, 5\]"),
    "mask rank": ((2, 5, 24), (10,), r"key_mask of AlignedAttention is \[10\]"),
}


@pytest.mark.parametrize("bad", BAD_ATTENTION)
def test_attention_refuses_shapes_that_do_not_fit(best: OnnxRuntimeOps, bad: str) -> None:
    qkv, mask, message = BAD_ATTENTION[bad]
    with pytest.raises(Exception, match=message):
        best.aligned_attention(torch.zeros(qkv), torch.zeros(mask), 0, 2)
    check_attention(best, *attention_inputs(1, 5, 2, 4, torch.float32, 0))  # the next request is right


def test_more_heads_than_a_row_has_numbers_are_refused(best: OnnxRuntimeOps) -> None:
    with pytest.raises(Exception, match="multiple of 4611686018427387904 heads"):
        best.aligned_attention(torch.zeros(1, 2, 12), torch.zeros(1, 2), 0, 2**62)


BAD_COMPACTION: dict[str, tuple[int, Any, str]] = {
    "rank": (0, torch.zeros(21, 8), r"tokens of TokenCompact are \[21, 8\]"),
    "one token": (0, torch.zeros(2, 1, 8), r"tokens of TokenCompact are \[2, 1, 8\]"),
    "mask": (1, torch.zeros(2, 20), r"key_mask of TokenCompact is \[2, 20\]; .* \[2, 21\]"),
    "ids": (2, torch.zeros(1, 21, dtype=torch.int32), r"source_ids of TokenCompact is \[1, 21\]"),
    "column": (3, torch.zeros(2, 21), r"column_score of TokenCompact is \[2, 21\]"),
    "class": (4, torch.zeros(20), r"class_score of TokenCompact is \[20\]"),
    "alignment": (5, torch.zeros(2, 21, 4), r"alignment of TokenCompact is \[2, 21, 4\]"),
    "no alignments": (5, torch.zeros(2, 20, 0), r"alignment of TokenCompact is \[2, 20, 0\]"),
    "no temperature": (6, torch.zeros(0), r"temperature of TokenCompact is \[0\]"),
    "temperatures": (6, torch.ones(2), r"temperature of TokenCompact is \[2\]"),
    "no min_keep": (7, torch.zeros(0, dtype=torch.int64), r"min_keep of TokenCompact is \[0\]"),
}


@pytest.mark.parametrize("bad", BAD_COMPACTION)
def test_compaction_refuses_shapes_that_do_not_fit(best: OnnxRuntimeOps, bad: str) -> None:
    index, value, message = BAD_COMPACTION[bad]
    inputs = compact_call(2, 20, 5, torch.float32)
    wrong = list(inputs)
    wrong[index] = value
    with pytest.raises(Exception, match=message):
        best.token_compact(*wrong)
    check_compact(best, tuple(inputs))  # the next request is right


@pytest.mark.parametrize(
    ("spec", "attributes", "message"),
    [
        (ALIGNED_ATTENTION, {"causal": 0, "heads": 0}, "AlignedAttention has 0 heads"),
        (ALIGNED_ATTENTION, {"causal": 0, "heads": -3}, "AlignedAttention has -3 heads"),
        (ALIGNED_ATTENTION, {"causal": 0}, "heads"),
        (TOKEN_COMPACT, {}, "layer"),
        (TOKEN_COMPACT, {"layer": 0, KEEP_MARGIN: -0.5}, "keep_margin of TokenCompact is -0.5"),
        (TOKEN_COMPACT, {"layer": 0, KEEP_MARGIN: NAN}, "keep_margin of TokenCompact is nan"),
    ],
)
def test_a_node_with_bad_attributes_is_refused(
    best: OnnxRuntimeOps, spec: Any, attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(Exception, match=message):
        best.session(spec, torch.float32, **attributes)
