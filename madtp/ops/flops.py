"""GFLOPs of a model, or of a part of one, as it really runs, token counts included.

Underneath is `torch.utils.flop_counter`. The convention is that of fvcore and so of the paper: a multiply-add counts
as one, layer norms count, softmax, GELU, selection and gathers do not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

LAYER_NORM_FLOPS = 5  # per element, as fvcore counts an affine layer norm


@dataclass(frozen=True)
class Flops:
    """Multiply-adds of one call."""

    total: int
    by_operator: dict[str, int]

    @property
    def giga(self) -> float:
        """GFLOPs in the paper's unit."""
        return self.total / 1e9


# torch counts 2 for a multiply-add, so the formulas below do too; `count_call` halves the sum.


def _layer_norm(x: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * LAYER_NORM_FLOPS * torch.Size(x).numel()


def _dense_attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _aligned_attention(qkv: Sequence[int], *_: Any, **__: Any) -> int:
    batch, length, width = qkv
    return 2 * 2 * batch * length * length * width // 3


def _token_compact(tokens: Sequence[int], *_: Any, out_shape: Any, **__: Any) -> int:
    """The merge: a weighted sum of the dropped tokens. (The threshold's weighted sum is elementwise.)"""
    batch, length, width = tokens
    kept = out_shape[0][1]
    dropped = length - (kept - 1) if kept < length else 0
    return 2 * batch * dropped * width


# Of the packed layout, whose sequences have what their ends say, whatever rows there are: formulas get the tensors.


def _raw(formula: Callable[..., int]) -> Callable[..., int]:
    formula._get_raw = True  # type: ignore[attr-defined]  # torch.utils.flop_counter hands over shapes otherwise
    return formula


def _lengths(cu_seqlens: Tensor) -> Tensor:
    return cu_seqlens.diff().to(torch.int64)


@_raw
def _packed_attention(qkv: Tensor, key_mask: Tensor, cu_seqlens: Tensor, *_: Any, **__: Any) -> int:
    pairs = int(_lengths(cu_seqlens).square().sum())
    return 2 * 2 * pairs * qkv.shape[1] // 3


@_raw
def _packed_compact(tokens: Tensor, *rest: Any, out_val: Any, **__: Any) -> int:
    before, after = _lengths(rest[5]), _lengths(out_val[3])
    dropped = torch.where(after < before, before - (after - 1), 0)
    return 2 * int(dropped.sum()) * tokens.shape[1]


@_raw
def _varlen_attention(query: Tensor, key_value: Tensor, cu_seqlens: Tensor, cu_keys: Tensor, *_: Any, **__: Any) -> int:
    pairs = int((_lengths(cu_seqlens) * _lengths(cu_keys)).sum())
    return 2 * 2 * pairs * query.shape[1]


_FORMULAS = {
    torch.ops.aten.native_layer_norm: _layer_norm,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _dense_attention,
    torch.ops.madtp.aligned_attention: _aligned_attention,
    torch.ops.madtp.token_compact: _token_compact,
    torch.ops.madtp.packed_aligned_attention: _packed_attention,
    torch.ops.madtp.packed_token_compact: _packed_compact,
    torch.ops.madtp.varlen_attention: _varlen_attention,
}


def count_call(call: Callable[[], object]) -> Flops:
    """Run `call` once, without gradients, and count: a part of a model, say, or several of them.

    Tensors may be on the meta device where nothing is pruned: shapes are all that dense counts need.
    Tensors made beforehand have to be made without gradients too.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    with torch.no_grad(), counter:
        call()
    by_operator = {str(op): count // 2 for op, count in counter.get_flop_counts()["Global"].items()}
    return Flops(sum(by_operator.values()), by_operator)


def count_flops(model: nn.Module, inputs: Mapping[str, Tensor], temperature: float) -> Flops:
    """Run `model` once and count.

    Args:
        inputs: its inputs by name, without `temperature`. Under the reference rule one K serves the whole batch, so
            count requests one at a time to learn what each of them costs.
        temperature: zero or less counts the dense model, which has neither statistics nor alignment.
    """
    return count_call(lambda: model(**inputs, temperature=temperature))
