"""Random calls of the two ops, whose results are compared with the reference."""

from typing import Any

import torch
from torch import Tensor

from madtp.ops import reference as ops
from tests.helpers.kernels import Compacted, Kernels, check_accuracy

NEAR = 1e-5  # scores relatively closer than this may be ordered either way by two orders of addition


def compact_inputs(batch: int, tokens: int, seed: int, width: int = 8, entries: int = 4) -> dict[str, Tensor]:
    """Random inputs of token_compact for `tokens` non-class tokens, in the order of its arguments."""
    g = torch.Generator().manual_seed(seed)
    return {
        "tokens": torch.randn(batch, tokens + 1, width, generator=g),
        "key_mask": -10000.0 * (torch.rand(batch, tokens + 1, generator=g) < 0.3),
        "source_ids": torch.arange(tokens + 1, dtype=torch.int32).repeat(batch, 1),
        "column_score": torch.rand(batch, tokens, generator=g),
        "class_score": torch.rand(batch, tokens, generator=g) / tokens,
        "alignment": torch.randn(batch, tokens, entries, generator=g),
    }


def check_attention(kernels: Kernels, qkv: Tensor, mask: Tensor, causal: int, heads: int) -> tuple[Tensor, ...]:
    """Run AlignedAttention and compare it with the reference."""
    results = kernels.aligned_attention(qkv, mask, causal, heads)
    same = ops.aligned_attention(qkv, mask, causal, heads)
    exact = ops.aligned_attention(qkv.double(), mask, causal, heads)
    query, key, _ = qkv.double().abs().nan_to_num(0.0, 0.0, 0.0).unflatten(-1, (3, heads, -1)).unbind(2)
    condition = torch.einsum("bihd,bjhd->bhij", query, key).max().item() / query.shape[-1] ** 0.5
    condition += least_mask(mask, causal)
    for got, reference, truth in zip(results, same, exact, strict=True):
        assert got.dtype == reference.dtype
        check_accuracy(got, reference, truth, qkv.dtype, condition)
    return results


def least_mask(mask: Tensor, causal: int) -> float:
    """What the mask adds to the scores of a row whose keys are all masked: its scores are that large, and round so."""
    sizes = mask.double().abs().nan_to_num(0.0, 0.0, 0.0)
    rows = sizes.cummin(dim=1).values if causal else sizes.min(dim=1).values
    return rows.max().item()


def is_decided(inputs: tuple[Any, ...]) -> bool:
    """False where scores or threshold are so close that rounding may decide: tokens that are equal are not."""
    column, cls, alignment = (tensor.double() for tensor in inputs[3:6])
    importance = ops.token_importance(column, cls, alignment)
    temperature = inputs[6].double()
    if not temperature > 0 or not importance.isfinite().all():
        return True
    near = NEAR * importance.abs().amax()
    margin = (importance - ops.learned_threshold(importance, alignment, temperature, *inputs[9:])[:, None]).abs()
    gaps = importance.sort(dim=1).values.diff(dim=1)
    return bool((margin > near).all() and ((gaps == 0) | (gaps > near)).all())


def check_compact(kernels: Kernels, inputs: tuple[Any, ...]) -> Compacted:
    """Run TokenCompact and compare it with the reference: equal choices, a merged token as accurate as torch's."""
    got = kernels.token_compact(*inputs)
    tokens, mask, ids, count = ops.token_compact(*inputs)
    assert got.count == int(count)
    assert torch.equal(got.ids.cpu(), ids)
    assert torch.equal(bits(got.mask.cpu()), bits(mask))
    assert torch.equal(bits(got.tokens[:, :-1].cpu()), bits(tokens[:, :-1]))
    if got.count < inputs[0].shape[1] or (ids[:, -1] < 0).any():
        exact = ops.token_compact(inputs[0].double(), *inputs[1:3], *(x.double() for x in inputs[3:6]), *inputs[6:])
        check_accuracy(got.tokens[:, -1], tokens[:, -1], exact[0][:, -1], tokens.dtype)
    else:
        assert torch.equal(bits(got.tokens.cpu()), bits(tokens))
    return got


def attention_inputs(batch: int, length: int, heads: int, size: int, dtype: torch.dtype, seed: int) -> tuple[Any, ...]:
    """Random inputs of AlignedAttention with some keys masked."""
    generator = torch.Generator().manual_seed(seed)
    qkv = 2 * torch.randn(batch, length, 3 * heads * size, generator=generator)
    return qkv.to(dtype), -10000.0 * (torch.rand(batch, length, generator=generator) < 0.2), 0, heads


def compact_call(
    batch: int, tokens: int, seed: int, dtype: torch.dtype, tau: float = 0.7, margin: float = 0.0, **sizes: int
) -> list[Any]:
    """Arguments of TokenCompact, random."""
    inputs = list(compact_inputs(batch, tokens, seed, **sizes).values())
    inputs[5] = inputs[5].abs()  # else the alignment may add up to nearly nothing, and rounding decides
    return [inputs[0].to(dtype), *inputs[1:], torch.tensor(tau), torch.tensor(1), seed % 12, margin]


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)
