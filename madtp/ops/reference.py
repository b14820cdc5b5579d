"""The two custom torch ops, `torch.ops.madtp.aligned_attention` and `torch.ops.madtp.token_compact`.

The functions here are the readable reference: the ONNX function bodies (`export/graph/functions.py`) and the CUDA
kernels have to give the same results. Section numbers refer to `docs/semantics.md`.
"""

import math
from typing import Any

import torch
from torch import Tensor

from madtp.ops.products import product
from madtp.ops.spec import ALIGNED_ATTENTION, DOMAIN, TOKEN_COMPACT

EPSILON = 1e-8  # of every normalisation in the importance
MASKED = -10000.0  # what BERT adds to the score of a key that must not be seen


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, L, C] -> [B, heads, L, C / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, heads, L, D] -> [B, L, heads * D]."""
    return x.transpose(1, 2).flatten(2)


def aligned_attention(qkv: Tensor, key_mask: Tensor, causal: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Self-attention that also returns the two statistics of its probabilities that pruning needs (sections 2, 3).

    Args:
        qkv: [B, L, 3C] float; query, key and value of every token, class token at index 0.
        key_mask: [B, L] float32, added to the scores of that key (0 or -10000).
        causal: 1 hides later keys from every query.
        heads: H, a divisor of C.

    Returns:
        context [B, L, C] in the dtype of `qkv`; column_score [B, L - 1] and class_score [B, L - 1], float32 (float64
        where `qkv` is: the reference of other precisions).
    """
    query, key, value = (split_heads(part, heads) for part in qkv.chunk(3, dim=-1))
    scores = product(query / math.sqrt(query.shape[-1]), key.mT) + key_mask[:, None, None, :].to(qkv.dtype)
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=qkv.device).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    wide = torch.promote_types(qkv.dtype, torch.float32)
    probabilities = scores.to(wide).softmax(dim=-1)
    context = product(probabilities.to(qkv.dtype), value)
    column_score = probabilities.amax(dim=1)[:, 1:, 1:].sum(dim=1)
    norm = torch.linalg.vector_norm(context[:, :, 1:], dim=-1, dtype=wide)
    class_score = (probabilities[:, :, 0, 1:] * norm / (norm.sum(dim=1, keepdim=True) + EPSILON)).sum(dim=1)
    return merge_heads(context), column_score, class_score


def token_importance(column_score: Tensor, class_score: Tensor, alignment: Tensor) -> Tensor:
    """Importance s [B, N] of every non-class token: mean of column, alignment and class score (section 3).

    Args:
        column_score, class_score: [B, N] float32.
        alignment: [B, N, T] float32.
    """
    column = column_score / (column_score.sum(dim=1, keepdim=True) + EPSILON)
    aligned = alignment.amax(dim=2)
    aligned = aligned / (aligned.sum(dim=1, keepdim=True) + EPSILON)
    return (column + aligned + class_score) / 3


def learned_threshold(
    importance: Tensor, alignment: Tensor, temperature: Tensor | float, keep_margin: float = 0.0
) -> Tensor:
    """Threshold theta [B]: the least, over the alignment tokens, of their softmax-weighted importance (section 4).

    Args:
        importance: [B, N] float32.
        alignment: [B, N, T] float32.
        keep_margin: lowers it by this times the mean |importance| of the sample.
    """
    weights = (alignment / temperature).softmax(dim=1)
    threshold = torch.einsum("bnt,bn->bt", weights, importance).amin(dim=1)
    return threshold - keep_margin * importance.abs().mean(dim=1) if keep_margin else threshold


def counts_above(importance: Tensor, threshold: Tensor) -> Tensor:
    """k [B] int64: tokens above their sample's threshold; all N of them where a score is NaN or infinite.

    A score that is not finite must not decide what is thrown away, so its sample asks to keep everything.
    """
    finite = importance.isfinite().all(dim=1) & threshold.isfinite()
    above = (importance > threshold[:, None]).sum(dim=1)
    return torch.where(finite, above, importance.shape[1])


def importance_rank(importance: Tensor) -> Tensor:
    """rank [B, N] int64, 0 for the most important token; of equal ones the lower index is the better."""
    order = importance.sort(dim=1, descending=True, stable=True).indices
    return torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )


def token_compact(
    tokens: Tensor,
    key_mask: Tensor,
    source_ids: Tensor,
    column_score: Tensor,
    class_score: Tensor,
    alignment: Tensor,
    temperature: Tensor,
    min_keep: Tensor,
    layer: int,
    keep_margin: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keep the K most important tokens, merge the rest into one (sections 5, 6); `reference` batching rule.

    Args:
        tokens: [B, 1 + N, C] float; key_mask: [B, 1 + N] float32; source_ids: [B, 1 + N] int32.
        column_score, class_score: [B, N] float32; alignment: [B, N, T] float32.
        temperature: [] float32; zero, negative or NaN leaves everything as it is.
        min_keep: [] int64; K below it leaves everything as it is (1 for BLIP).
        layer: the merged token's source id is -(layer + 1).
        keep_margin: at least 0; lowers the threshold by this times the mean |importance| of the sample.

    Returns:
        tokens, mask and ids of [class, the K - 1 best by position, the K-th best, merged]: [B, K + 2, ...], or copies
        of the inputs where nothing is pruned; and the count of tokens, [] int64.
    """
    importance = token_importance(column_score, class_score, alignment)
    keep = importance.shape[1]
    if temperature > 0:
        threshold = learned_threshold(importance, alignment, temperature, keep_margin)
        keep = int(counts_above(importance, threshold).max())
    if keep < int(min_keep) or importance.shape[1] - keep < 2:
        count = torch.tensor(tokens.shape[1], device=tokens.device)
        return tokens.clone(), key_mask.clone(), source_ids.clone(), count

    compacted, mask, ids = compact_sequence(tokens, key_mask, source_ids, importance, keep, layer)
    return compacted, mask, ids, torch.tensor(keep + 2, device=tokens.device)


def compact_sequence(
    tokens: Tensor, key_mask: Tensor, source_ids: Tensor, importance: Tensor, keep: int, layer: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, mask and ids [B, keep + 2, ...] of [B, 1 + N, ...]; `keep` is at most N - 2. See `token_compact`."""
    rank = importance_rank(importance)
    kept = _storage_order(rank, keep)
    swallowed = _position_of(rank, keep)  # the best of the dropped tokens
    compacted = _compact_tokens(tokens, importance, rank, kept, keep)
    mask = torch.cat([key_mask[:, :1], key_mask.gather(1, kept + 1), key_mask.gather(1, swallowed + 1)], dim=1)
    merged_id = torch.full_like(source_ids[:, :1], -(layer + 1))
    ids = torch.cat([source_ids[:, :1], source_ids.gather(1, kept + 1), merged_id], dim=1)
    return compacted, mask, ids


def _position_of(rank: Tensor, wanted: int) -> Tensor:
    """[B, 1]: index of the token whose rank is `wanted`."""
    return (rank == wanted).to(torch.uint8).argmax(dim=1, keepdim=True)


def _storage_order(rank: Tensor, keep: int) -> Tensor:
    """[B, keep]: indices of the kept tokens as they are stored: all but the last by position, then the K-th best."""
    best = (rank < keep - 1).nonzero()[:, 1].reshape(rank.shape[0], keep - 1)
    return torch.cat([best, _position_of(rank, keep - 1)], dim=1)


def _compact_tokens(tokens: Tensor, importance: Tensor, rank: Tensor, kept: Tensor, keep: int) -> Tensor:
    """[B, keep + 2, C]: class token, kept tokens, importance-weighted mean of the others (computed in float32)."""
    body = tokens[:, 1:]
    weight = importance * (rank >= keep)
    weight = weight / (weight.sum(dim=1, keepdim=True) + EPSILON)
    merged = (weight[:, None, :] @ body.to(weight.dtype)).to(tokens.dtype)
    gathered = body.gather(1, kept[..., None].expand(-1, -1, body.shape[2]))
    return torch.cat([tokens[:, :1], gathered, merged], dim=1)


def _register(spec: Any, implementation: Any) -> Any:
    return torch.library.custom_op(
        f"{DOMAIN}::{spec.torch_name}", implementation, mutates_args=(), schema=spec.torch_schema
    )


ALIGNED_ATTENTION_OP = _register(ALIGNED_ATTENTION, aligned_attention)
TOKEN_COMPACT_OP = _register(TOKEN_COMPACT, token_compact)


@ALIGNED_ATTENTION_OP.register_fake
def _(qkv: Tensor, key_mask: Tensor, causal: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, width = qkv.shape
    score = qkv.new_empty(batch, length - 1, dtype=torch.float32)
    return qkv.new_empty(batch, length, width // 3), score, torch.empty_like(score)


@TOKEN_COMPACT_OP.register_fake
def _(
    tokens: Tensor,
    key_mask: Tensor,
    source_ids: Tensor,
    column_score: Tensor,
    class_score: Tensor,
    alignment: Tensor,
    temperature: Tensor,
    min_keep: Tensor,
    layer: int,
    keep_margin: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    length = torch.library.get_ctx().new_dynamic_size(min=2)  # a class token and at least one other
    batch, _, width = tokens.shape
    count = tokens.new_empty((), dtype=torch.int64)
    return (
        tokens.new_empty(batch, length, width),
        key_mask.new_empty(batch, length),
        source_ids.new_empty(batch, length),
        count,
    )


# Training differentiates the reference itself: the backward pass runs it again with gradients on, which costs one more
# forward and keeps nothing of size [B, H, L, L] between the passes.


def _attention_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    qkv, key_mask, ctx.causal, ctx.heads = inputs
    ctx.save_for_backward(qkv, key_mask)


def _attention_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    qkv, key_mask = ctx.saved_tensors
    with torch.enable_grad():
        qkv = qkv.detach().requires_grad_()
        outputs = aligned_attention(qkv, key_mask.detach(), ctx.causal, ctx.heads)
        (grad,) = torch.autograd.grad(outputs, qkv, grads)
    return grad, None, None, None


def _compact_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tokens, _, _, column_score, class_score, alignment = inputs[:6]
    ctx.pruned = output[0].shape[1] != tokens.shape[1]
    ctx.keep = output[0].shape[1] - 2
    ctx.save_for_backward(tokens, column_score, class_score, alignment)


def _compact_backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients through the gather and the merge weights; the choice of tokens itself has none."""
    if not ctx.pruned:
        return (grad, *[None] * 9)
    with torch.enable_grad():
        leaves = [saved.detach().requires_grad_() for saved in ctx.saved_tensors]
        tokens, column_score, class_score, alignment = leaves
        importance = token_importance(column_score, class_score, alignment)
        rank = importance_rank(importance.detach())
        output = _compact_tokens(tokens, importance, rank, _storage_order(rank, ctx.keep), ctx.keep)
        grads = torch.autograd.grad(output, leaves, grad)
    return grads[0], None, None, *grads[1:], None, None, None, None


ALIGNED_ATTENTION_OP.register_autograd(_attention_backward, setup_context=_attention_context)
TOKEN_COMPACT_OP.register_autograd(_compact_backward, setup_context=_compact_context)
