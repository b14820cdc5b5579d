"""The kernels against the torch reference, on recorded and on random data. `host` is the build for the CPU, which runs
every thread of a kernel in random order; `cuda` is the real one and needs a GPU."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.gpu.calls import compact_call as compact_call_of
from madtp.ops import reference as ops
from madtp.ops.library import INVALID_VALUE, KernelError
from tests.helpers import recorded
from tests.helpers.compaction_checks import (
    check_any_compaction,
    check_margins,
    check_not_finite,
    check_nothing_or_everything,
    check_random_calls,
)
from tests.helpers.kernel_calls import (
    NEAR,
    attention_inputs,
    bits,
    check_attention,
    check_compact,
    compact_call,
)
from tests.helpers.kernels import Kernels, libraries, load
from tests.helpers.paths import golden_folders

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
PATHS = [(torch.float32, 16), (torch.float16, 24), (torch.float16, 32), (torch.bfloat16, 64), (torch.float16, 128)]
INFINITY = float("inf")


@pytest.fixture(scope="module", params=libraries())
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return load(request.param)


def _replays() -> Iterator[Any]:
    for folder in golden_folders("nlvr"):
        if folder.name == "tiny":  # what the project carries, again
            continue
        # On the host the other full-size cases would take minutes.
        only = "b1_strong" if folder.name == "base" and not torch.cuda.is_available() else None
        yield pytest.param(folder, only, id=f"{folder.parent.name}-{folder.name}")


@pytest.mark.parametrize(("folder", "only"), list(_replays()))
def test_kernels_agree_in_every_layer_of_recorded_cases(kernels: Kernels, folder: Any, only: str | None) -> None:
    pruned = 0
    for name, calls in recorded.replayed(folder, only):
        assert len(calls.attention) == len(calls.compact) > 0, name
        for qkv, mask, causal, heads in calls.attention:
            # One 16-bit type is enough for the full-size vision layers on the host.
            for dtype in filter(kernels.supports, DTYPES[: 3 if qkv.shape[1] < 200 or kernels.device == "cuda" else 2]):
                check_attention(kernels, qkv.to(dtype), mask, causal, heads)
        for inputs in calls.compact:
            for dtype in DTYPES:
                result = check_compact(kernels, (inputs[0].to(dtype), *inputs[1:]))
                pruned += result.count < inputs[0].shape[1]
    assert pruned > 0


@settings(max_examples=60, deadline=None)
@example(batch=1, length=2, shape=(1, 8), dtype=torch.float32, causal=False, seed=400).via("found: all keys are masked")
@given(
    batch=st.integers(1, 3),
    length=st.one_of(st.sampled_from([1, 2, 63, 64, 65, 127, 128, 129, 130, 192, 193]), st.integers(1, 100)),
    shape=st.sampled_from([(1, 8), (2, 12), (3, 24), (5, 8), (2, 32), (3, 32), (1, 64), (1, 72), (1, 128), (1, 256)]),
    dtype=st.sampled_from(DTYPES),
    causal=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_attention_at_any_size(
    kernels: Kernels, batch: int, length: int, shape: tuple[int, int], dtype: torch.dtype, causal: bool, seed: int
) -> None:
    assume(kernels.supports(dtype))
    kernels.seed(seed % 1000)
    qkv, mask, _, heads = attention_inputs(batch, length, *shape, dtype, seed)
    check_attention(kernels, qkv, mask, int(causal), heads)


@pytest.mark.parametrize(("dtype", "size"), PATHS)
@pytest.mark.parametrize("masked", [1, 64, 130])
def test_attention_with_leading_or_all_keys_masked(
    kernels: Kernels, dtype: torch.dtype, size: int, masked: int
) -> None:
    kernels.require(dtype)
    qkv, mask, causal, heads = attention_inputs(1, 130, 1, size, dtype, 5)
    mask[:] = 0
    mask[:, :masked] = -10000.0
    check_attention(kernels, qkv, mask, causal, heads)
    mask[:, :masked] = -INFINITY
    check_attention(kernels, qkv.double().to(dtype), mask, causal, heads)


@pytest.mark.parametrize(("dtype", "size"), PATHS)
def test_rows_of_masked_keys_only_share_their_attention_evenly(kernels: Kernels, dtype: torch.dtype, size: int) -> None:
    """Beside a mask of this size, scores and log2 of their sum vanish; the sum must not get lost."""
    kernels.require(dtype)
    qkv, mask, causal, heads = attention_inputs(1, 130, 2, size, dtype, 7)
    mask[:] = -1e9
    _, column, class_score = kernels.aligned_attention(qkv, mask, causal, heads)
    torch.testing.assert_close(column.cpu(), torch.full((1, 129), 129 / 130), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(class_score.cpu(), torch.full((1, 129), 1 / 130), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(("dtype", "size"), PATHS)
@pytest.mark.parametrize("value", [float("nan"), INFINITY, -INFINITY])
def test_what_is_not_finite_is_not_swallowed_by_attention(
    kernels: Kernels, dtype: torch.dtype, size: int, value: float
) -> None:
    kernels.require(dtype)
    for part, row in itertools.product(range(3), (0, 3, 66)):
        qkv, mask, causal, heads = attention_inputs(1, 67, 1, size, dtype, 6)
        qkv[0, row, part * size + 2] = value
        results = kernels.aligned_attention(qkv, mask, causal, heads)
        for got, reference in zip(results, ops.aligned_attention(qkv, mask, causal, heads), strict=True):
            assert torch.equal(got.cpu().isnan(), reference.isnan()), (part, row)


@pytest.mark.parametrize(("dtype", "size"), PATHS)
def test_a_sample_does_not_depend_on_its_batch_mates(kernels: Kernels, dtype: torch.dtype, size: int) -> None:
    kernels.require(dtype)
    qkv, mask, causal, heads = attention_inputs(5, 67, 2, size, dtype, 1)
    together = kernels.aligned_attention(qkv, mask, causal, heads)
    order = [3, 0, 4, 1, 2]
    moved = kernels.aligned_attention(qkv[order], mask[order], causal, heads)
    for slot in range(5):
        alone = kernels.aligned_attention(qkv[slot : slot + 1], mask[slot : slot + 1], causal, heads)
        for one, all_of_them, others in zip(alone, together, moved, strict=True):
            assert torch.equal(bits(one[0]), bits(all_of_them[slot]))
            assert torch.equal(bits(one[0]), bits(others[order.index(slot)]))


@pytest.mark.parametrize(("dtype", "length", "batch"), [(torch.float16, 70, 16), (torch.bfloat16, 130, 8)])
def test_large_batches_take_larger_tiles_and_give_the_same_bits(
    kernels: Kernels, dtype: torch.dtype, length: int, batch: int
) -> None:
    kernels.require(dtype)
    heads = 16
    assert batch * heads * -(-length // 128) >= 256  # where launch_head_size turns to tiles of 128 queries
    qkv, mask, causal, heads = attention_inputs(1, length, heads, 32, dtype, 2)
    for keys in (mask, torch.full_like(mask, -10000.0)):  # also where all keys are masked, which is computed otherwise
        alone = check_attention(kernels, qkv, keys, causal, heads)
        many = kernels.aligned_attention(qkv.repeat(batch, 1, 1), keys.repeat(batch, 1), causal, heads)
        for one, all_of_them in zip(alone, many, strict=True):
            for sample in all_of_them:
                assert torch.equal(bits(one[0]), bits(sample))


@pytest.mark.parametrize(("dtype", "length"), [(torch.float16, 140), (torch.bfloat16, 197)])
def test_heads_of_64_are_right_in_both_tiles(kernels: Kernels, dtype: torch.dtype, length: int) -> None:
    """The path of the base model: its size on a GPU, a smaller one on the host, where that takes 20 s a call."""
    kernels.require(dtype)
    batch, length, heads = (2, length, 64) if kernels.device == "cpu" else (5, 577, 12)
    assert batch * heads * -(-length // 128) >= 256 > heads * -(-length // 128)  # 128 queries together, 64 alone
    qkv, mask, causal, heads = attention_inputs(batch, length, heads, 64, dtype, 3)
    together = check_attention(kernels, qkv, mask, causal, heads)
    for slot in range(batch):
        alone = kernels.aligned_attention(qkv[slot : slot + 1], mask[slot : slot + 1], causal, heads)
        for one, all_of_them in zip(alone, together, strict=True):
            assert torch.equal(bits(one[0]), bits(all_of_them[slot]))


@settings(max_examples=60, deadline=None)
@given(
    batch=st.one_of(st.integers(1, 4), st.sampled_from([63, 64])),
    tokens=st.one_of(st.sampled_from([1, 2, 3, 255, 256, 257, 511, 512, 513, 1024]), st.integers(1, 300)),
    sizes=st.sampled_from([(8, 1), (8, 31), (24, 32), (264, 33), (520, 100)]),
    dtype=st.sampled_from(DTYPES),
    tau=st.sampled_from([0.01, 0.3, 1.0, 5.0, 1e30, INFINITY, 0.0, -0.0, -1.0, -INFINITY, float("nan")]),
    margin=st.sampled_from([0.0, 0.0, 0.02, 0.3, 1.0, 1e30]),
    ties=st.sampled_from([0, 1, 2, 7]),
    seed=st.integers(0, 2**31),
)
def test_compaction_of_anything_is_the_references(
    kernels: Kernels,
    batch: int,
    tokens: int,
    sizes: tuple[int, int],
    dtype: torch.dtype,
    tau: float,
    margin: float,
    ties: int,
    seed: int,
) -> None:
    kernels.seed(seed % 1000)
    batch = batch if tokens < 300 else 1 + batch % 3
    check_any_compaction(
        kernels, compact_call(batch, tokens, seed, dtype, tau, margin, width=sizes[0], entries=sizes[1]), ties
    )


def test_random_compactions_are_mostly_decided_and_pruned(kernels: Kernels) -> None:
    check_random_calls(kernels)


def test_a_margin_keeps_more_until_nothing_is_pruned(kernels: Kernels) -> None:
    check_margins(kernels)


def test_no_margin_is_the_call_without_one_bit_for_bit(kernels: Kernels) -> None:
    inputs = compact_call(2, 150, 4, torch.float16)
    with_none = kernels.token_compact(*inputs)
    without = compact_call_of(kernels.library, tuple(tensor.to(kernels.device) for tensor in inputs[:8]), inputs[8])
    without.run()
    tokens, mask, ids, count = (tensor.cpu() for tensor in without.outputs)
    assert with_none.count == int(count) < 151
    for got, room in ((with_none.tokens, tokens), (with_none.mask, mask), (with_none.ids, ids)):
        assert torch.equal(bits(got.flatten()), bits(room.flatten()[: got.numel()]))


@pytest.mark.parametrize("margin", [-0.1, INFINITY, float("nan")])
def test_a_margin_that_is_no_margin_is_refused(kernels: Kernels, margin: float) -> None:
    with pytest.raises(KernelError) as refused:
        kernels.token_compact(*compact_call(1, 20, 0, torch.float32, margin=margin))
    assert refused.value.code == INVALID_VALUE


@pytest.mark.parametrize("keeps", ["nothing", "everything"])
def test_keeping_nothing_or_everything_changes_nothing(kernels: Kernels, keeps: str) -> None:
    check_nothing_or_everything(kernels, keeps, torch.float16)


@pytest.mark.parametrize("value", [float("nan"), INFINITY, -INFINITY])
@pytest.mark.parametrize("which", ["column", "class", "alignment"])
def test_a_score_that_is_not_finite_leaves_all_tokens(kernels: Kernels, which: str, value: float) -> None:
    check_not_finite(kernels, {"column": 3, "class": 4, "alignment": 5}[which], value)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 80), st.sampled_from(DTYPES), st.integers(0, 90), st.integers(0, 2**31))
def test_any_bytes_stay_inside_the_outputs(
    kernels: Kernels, batch: int, tokens: int, dtype: torch.dtype, room: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs = compact_call(batch, tokens, seed, dtype)

    def noise(like: Tensor) -> Tensor:
        size = (like.numel() * like.element_size(),)
        raw = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
        return raw.view(like.dtype).reshape(like.shape)

    for index in torch.randperm(8, generator=generator)[: 1 + seed % 8].tolist():
        inputs[index] = noise(inputs[index])
    kernels.token_compact(*inputs, max_tokens=0 if room == 1 else room)  # Kernels looks at the guards and at the count


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 300), st.integers(2, 310), st.integers(0, 2**31), st.booleans())
def test_a_bound_leaves_the_best_tokens_that_fit(
    kernels: Kernels, batch: int, tokens: int, room: int, seed: int, prune: bool
) -> None:
    inputs = compact_call(batch, tokens, seed, torch.float32, 0.7 if prune else 0.0)
    free = kernels.token_compact(*inputs)
    bounded = kernels.token_compact(*inputs, max_tokens=room)
    assert bounded.count == min(free.count, room)
    if free.count <= room:
        assert torch.equal(bits(bounded.tokens), bits(free.tokens))
        return
    importance = ops.token_importance(*inputs[3:6])
    gaps = importance.sort(dim=1).values.diff(dim=1)
    if (gaps < NEAR * importance.amax()).any():
        return
    best = importance.argsort(dim=1, descending=True)[:, : room - 2]
    for sample in range(batch):
        *kept, merged = bounded.ids[sample].tolist()
        assert sorted(kept) == [0, *sorted(int(token) + 1 for token in best[sample])]
        assert merged == -(inputs[8] + 1)


@pytest.mark.parametrize(("dtype", "size"), PATHS)
def test_attention_gives_the_same_bits_in_any_order_of_threads(kernels: Kernels, dtype: torch.dtype, size: int) -> None:
    kernels.require(dtype)
    inputs = attention_inputs(1, 67, 2 if size < 64 else 1, size, dtype, 9)
    _repeat(kernels, lambda: kernels.aligned_attention(*inputs))


def test_compaction_gives_the_same_bits_in_any_order_of_threads(kernels: Kernels) -> None:
    inputs = compact_call(2, 260, 4, torch.float16, width=264, entries=33)

    def run() -> tuple[Tensor, ...]:
        result = kernels.token_compact(*inputs)
        return result.tokens, result.mask, result.ids

    assert kernels.token_compact(*inputs).count < 261
    _repeat(kernels, run)


def _repeat(kernels: Kernels, run: Callable[[], tuple[Tensor, ...]], times: int = 200) -> None:
    first = run()
    for seed in range(times):
        kernels.seed(seed)
        for got, expected in zip(run(), first, strict=True):
            assert torch.equal(bits(got), bits(expected)), seed
