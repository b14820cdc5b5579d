"""The two ops against slow, plain definitions, and the properties that selection must have whatever the input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from madtp.ops.recorder import PruningRecorder
from madtp.ops.reference import counts_above, learned_threshold, token_importance
from tests.helpers.kernel_calls import compact_inputs

ATTEND = torch.ops.madtp.aligned_attention
COMPACT = torch.ops.madtp.token_compact
ONE = torch.tensor(1)


def compact(inputs: dict[str, Tensor], tau: float = 0.7, layer: int = 0, min_keep: int = 1) -> tuple[Tensor, ...]:
    return COMPACT(*inputs.values(), torch.tensor(tau), torch.tensor(min_keep), layer)


def scores(inputs: dict[str, Tensor], tau: float) -> tuple[Tensor, Tensor]:
    importance = token_importance(inputs["column_score"], inputs["class_score"], inputs["alignment"])
    return importance, learned_threshold(importance, inputs["alignment"], tau)


def is_unchanged(inputs: dict[str, Tensor], outputs: tuple[Tensor, ...]) -> bool:
    same = all(torch.equal(outputs[i], inputs[n]) for i, n in enumerate(("tokens", "key_mask", "source_ids")))
    return same and int(outputs[3]) == inputs["tokens"].shape[1]


def plain_attention(qkv: np.ndarray, mask: np.ndarray, heads: int, causal: bool) -> tuple[np.ndarray, ...]:
    """The definition, one number at a time (float64)."""
    batch, length, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    size = width // heads
    context = np.zeros((batch, length, width))
    column, cls = np.zeros((batch, length - 1)), np.zeros((batch, length - 1))
    for b in range(batch):
        probability = np.zeros((heads, length, length))
        for h in range(heads):
            q, k, v = (qkv[b, :, part * width + h * size : part * width + (h + 1) * size] for part in range(3))
            for i in range(length):
                keys = range(i + 1) if causal else range(length)
                logits = np.array([q[i] @ k[j] / math.sqrt(size) + mask[b, j] for j in keys])
                weights = np.exp(logits - logits.max())
                probability[h, i, : len(weights)] = weights / weights.sum()
                context[b, i, h * size : (h + 1) * size] = probability[h, i] @ v
        for j in range(1, length):
            column[b, j - 1] = sum(max(probability[h, i, j] for h in range(heads)) for i in range(1, length))
            norms = np.array([np.linalg.norm(context[b, j, h * size : (h + 1) * size]) for h in range(heads)])
            cls[b, j - 1] = sum(probability[h, 0, j] * norms[h] / (norms.sum() + 1e-8) for h in range(heads))
    return context, column, cls


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize(("batch", "length", "width", "heads"), [(1, 2, 4, 1), (2, 7, 12, 3), (3, 5, 8, 4)])
def test_attention_is_its_definition(batch: int, length: int, width: int, heads: int, causal: int) -> None:
    g = torch.Generator().manual_seed(length)
    qkv = torch.randn(batch, length, 3 * width, generator=g)
    mask = -10000.0 * (torch.rand(batch, length, generator=g) < 0.3)
    mask[:, 0] = 0
    expected = plain_attention(qkv.double().numpy(), mask.numpy(), heads, bool(causal))
    for actual, wanted in zip(ATTEND(qkv, mask, causal, heads), expected, strict=True):
        np.testing.assert_allclose(actual.numpy(), wanted, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_keeps_statistics_in_float32(dtype: torch.dtype) -> None:
    qkv = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    context, column, cls = ATTEND(qkv, torch.zeros(2, 9), 0, 4)
    exact = ATTEND(qkv.float(), torch.zeros(2, 9), 0, 4)
    assert (context.dtype, column.dtype, cls.dtype) == (dtype, torch.float32, torch.float32)
    torch.testing.assert_close(column, exact[1], atol=0.05, rtol=0.05)


def test_importance_and_threshold_are_their_definitions() -> None:
    inputs = compact_inputs(2, 6, seed=3)
    a, c, m = (inputs[n].double().numpy() for n in ("column_score", "class_score", "alignment"))
    importance, threshold = scores(inputs, 0.5)
    for b in range(2):
        best = m[b].max(axis=1)
        s = (a[b] / (a[b].sum() + 1e-8) + best / (best.sum() + 1e-8) + c[b]) / 3
        np.testing.assert_allclose(importance[b], s, rtol=1e-5)
        sharp = np.exp(m[b] / 0.5)
        np.testing.assert_allclose(threshold[b], ((sharp / sharp.sum(axis=0)).T @ s).min(), rtol=1e-5)


@settings(max_examples=150, deadline=None)
@given(
    batch=st.integers(1, 5), tokens=st.integers(1, 40), tau=st.sampled_from([0.05, 0.3, 1.0, 5.0]), seed=st.integers(0)
)
def test_compaction_is_its_definition(batch: int, tokens: int, tau: float, seed: int) -> None:
    inputs = compact_inputs(batch, tokens, seed % 2**31)
    outputs = compact(inputs, tau, layer=2)
    importance, threshold = scores(inputs, tau)
    keep = max(int((importance[b] > threshold[b]).sum()) for b in range(batch))
    if keep < 1 or tokens - keep <= 1:
        assert is_unchanged(inputs, outputs)
        return
    assert int(outputs[3]) == keep + 2 == outputs[0].shape[1]
    for b in range(batch):
        order = sorted(range(tokens), key=lambda j: (-importance[b, j].item(), j))
        stored = [*sorted(order[: keep - 1]), order[keep - 1]]
        dropped = order[keep:]
        assert outputs[2][b].tolist() == [0, *(j + 1 for j in stored), -3]
        assert torch.equal(outputs[0][b, : keep + 1], inputs["tokens"][b, [0, *(j + 1 for j in stored)]])
        rest = importance[b, dropped]
        merged = (rest / (rest.sum() + 1e-8)) @ inputs["tokens"][b, [j + 1 for j in dropped]]
        torch.testing.assert_close(outputs[0][b, -1], merged, atol=1e-5, rtol=1e-4)
        wanted = inputs["key_mask"][b, [0, *(j + 1 for j in stored), dropped[0] + 1]]
        assert torch.equal(outputs[1][b], wanted)


def margin_compact(inputs: dict[str, Tensor], margin: float, tau: float = 0.7) -> tuple[Tensor, ...]:
    return COMPACT(*inputs.values(), torch.tensor(tau), ONE, 0, margin)


def spoiled(inputs: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Inputs with ties, or a score that is not finite."""
    if kind == "ties":
        for name in ("column_score", "class_score", "alignment"):
            inputs[name] = inputs[name][:, torch.arange(inputs[name].shape[1]) % 3 % inputs[name].shape[1]]
    elif kind != "plain":
        inputs["column_score"][-1, -1] = float(kind)
    return inputs


KINDS = ["plain", "ties", "nan", "inf", "-inf"]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(1, 40), st.sampled_from(KINDS), st.integers(0, 10**6))
def test_no_margin_changes_no_bit(batch: int, tokens: int, kind: str, seed: int) -> None:
    inputs = spoiled(compact_inputs(batch, tokens, seed), kind)
    for left, right in zip(margin_compact(inputs, 0.0), compact(inputs), strict=True):
        assert torch.equal(left, right)


@settings(max_examples=150, deadline=None)
@given(
    batch=st.integers(1, 4),
    tokens=st.integers(1, 40),
    kind=st.sampled_from(KINDS),
    margins=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    seed=st.integers(0, 10**6),
)
def test_kept_sets_grow_with_the_margin(batch: int, tokens: int, kind: str, margins: list[float], seed: int) -> None:
    inputs = spoiled(compact_inputs(batch, tokens, seed), kind)
    inputs["alignment"] = inputs["alignment"].abs()  # its sum may not be nearly nothing, nor the scores enormous
    importance, _ = scores(inputs, 0.7)
    thresholds = [learned_threshold(importance, inputs["alignment"], 0.7, margin) for margin in margins]
    counts = [counts_above(importance, threshold) for threshold in thresholds]
    assert (counts[0] <= counts[1]).all()
    narrow, wide = (margin_compact(inputs, margin) for margin in margins)
    if int(narrow[3]) < tokens + 1 or (narrow[2] < 0).any():  # where nothing is above, all stay
        for less, more in zip(narrow[2].tolist(), wide[2].tolist(), strict=True):
            assert set(less) - {-1} <= set(more)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 40), st.sampled_from(KINDS), st.floats(10, 1e30), st.integers(0, 10**6))
def test_a_huge_margin_keeps_everything(batch: int, tokens: int, kind: str, margin: float, seed: int) -> None:
    inputs = spoiled(compact_inputs(batch, tokens, seed), kind)
    inputs["alignment"] = inputs["alignment"].abs()
    assert is_unchanged(inputs, margin_compact(inputs, margin))


@pytest.mark.parametrize("name", ["column_score", "class_score", "alignment"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_with_a_margin_too_a_score_that_is_not_finite_leaves_everything(name: str, value: float) -> None:
    inputs = compact_inputs(3, 12, seed=1)
    assert not is_unchanged(inputs, margin_compact(inputs, 0.01))
    inputs[name][1, 4] = value
    assert is_unchanged(inputs, margin_compact(inputs, 0.01))


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 40), margin=st.floats(0, 0.5), seed=st.integers(0, 10**6))
def test_a_margin_is_that_of_each_sequence_alone(tokens: int, margin: float, seed: int) -> None:
    """The unit is the sequence's own mean, so that a batch changes no threshold."""
    inputs = compact_inputs(4, tokens, seed)
    inputs["alignment"] = inputs["alignment"].abs()
    importance, _ = scores(inputs, 0.7)
    together = learned_threshold(importance, inputs["alignment"], 0.7, margin)
    for slot in range(4):
        row, alignment = importance[slot : slot + 1], inputs["alignment"][slot : slot + 1]
        alone = learned_threshold(row, alignment, 0.7, margin)
        torch.testing.assert_close(together[slot : slot + 1], alone, atol=1e-7, rtol=1e-6)
        plain = learned_threshold(row, alignment, 0.7)
        torch.testing.assert_close(alone, plain - margin * row.abs().mean(), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_the_recorder_sees_the_threshold_that_decided(margin: float) -> None:
    inputs = compact_inputs(3, 30, seed=3)
    with PruningRecorder() as recorder:
        kept = int(margin_compact(inputs, margin)[3]) - 2
    (record,) = recorder.records
    importance, threshold = scores(inputs, 0.7)
    assert torch.equal(record.threshold, threshold - margin * importance.abs().mean(dim=1))
    assert record.keep == kept


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan")])
def test_no_positive_temperature_means_dense(tau: float) -> None:
    inputs = compact_inputs(2, 12, seed=1)
    assert is_unchanged(inputs, compact(inputs, tau))


@pytest.mark.parametrize("name", ["column_score", "class_score", "alignment"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_leaves_everything(name: str, value: float) -> None:
    inputs = compact_inputs(3, 12, seed=1)
    assert not is_unchanged(inputs, compact(inputs))
    inputs[name][1, 4] = value
    assert is_unchanged(inputs, compact(inputs))


def test_one_token_and_two_tokens_are_never_pruned() -> None:
    for tokens in (1, 2):
        inputs = compact_inputs(3, tokens, seed=0)
        assert is_unchanged(inputs, compact(inputs))


def test_nothing_above_the_threshold_keeps_everything() -> None:
    """All scores equal: none is strictly above its own mean."""
    inputs = compact_inputs(2, 10, seed=0)
    inputs["column_score"] = torch.zeros(2, 10)
    inputs["class_score"] = torch.zeros(2, 10)
    inputs["alignment"] = torch.zeros(2, 10, 4)
    importance, threshold = scores(inputs, 0.7)
    assert int(counts_above(importance, threshold).max()) == 0
    assert is_unchanged(inputs, compact(inputs))


def test_all_but_one_kept_leaves_everything() -> None:
    """Merging one token into one saves nothing (N - K <= 1)."""
    inputs = compact_inputs(1, 10, seed=0)
    inputs["column_score"] = torch.ones(1, 10)
    inputs["column_score"][0, 3] = 0.0
    inputs["class_score"] = torch.zeros(1, 10)
    inputs["alignment"] = torch.ones(1, 10, 4)
    importance, threshold = scores(inputs, 0.7)
    assert counts_above(importance, threshold).tolist() == [9]
    assert is_unchanged(inputs, compact(inputs))


def test_ties_go_to_the_lower_index() -> None:
    """Sample 1 sets K = 3; sample 0 has two better tokens, then six equal ones of which it keeps the first."""
    inputs = compact_inputs(2, 8, seed=0)
    inputs["alignment"] = torch.zeros(2, 8, 4)
    inputs["class_score"] = torch.zeros(2, 8)
    inputs["column_score"] = torch.tensor([[0.5, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5], [0.1, 0, 1, 0, 1, 0, 0, 1]])
    outputs = compact(inputs)
    assert int(outputs[3]) == 5
    assert outputs[2].tolist() == [[0, 2, 3, 1, -1], [0, 3, 5, 8, -1]]


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(4, 40), seed=st.integers(0, 10**6), slot=st.integers(0, 3))
def test_a_sample_gives_the_same_in_every_slot_and_alone_where_it_sets_k(tokens: int, seed: int, slot: int) -> None:
    inputs = compact_inputs(4, tokens, seed)
    outputs = compact(inputs)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    shuffled = compact({name: tensor[order] for name, tensor in inputs.items()})
    for batched, moved in zip(outputs[:3], shuffled[:3], strict=True):
        torch.testing.assert_close(batched[order], moved, atol=1e-6, rtol=1e-5)
    importance, threshold = scores(inputs, 0.7)
    counts = counts_above(importance, threshold)
    if counts[slot] == counts.max():  # the reference rule: one K for the batch, the largest
        alone = compact({name: tensor[slot : slot + 1] for name, tensor in inputs.items()})
        for batched, single in zip(outputs[:3], alone[:3], strict=True):
            torch.testing.assert_close(batched[slot : slot + 1], single, atol=1e-6, rtol=1e-5)


def test_min_keep_is_the_least_number_of_kept_tokens() -> None:
    inputs = compact_inputs(1, 20, seed=5)
    keep = int(compact(inputs)[3]) - 2
    assert int(compact(inputs, min_keep=keep)[3]) == keep + 2
    assert is_unchanged(inputs, compact(inputs, min_keep=keep + 1))


def test_outputs_are_no_views_of_the_inputs() -> None:
    """A caller that writes into a compacted tensor must not change the layer's input."""
    inputs = compact_inputs(1, 6, seed=0)
    before = inputs["tokens"].clone()
    compact(inputs, 0.0)[0].fill_(7.0)
    assert torch.equal(inputs["tokens"], before)
