"""Watching what is pruned: every `token_compact` of a forward pass, with the scores and thresholds that decided it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from madtp.ops.packed import spans
from madtp.ops.reference import counts_above, learned_threshold, token_importance
from madtp.ops.spec import EXACT


@dataclass(frozen=True)
class CompactRecord:
    """One pruning step.

    Attributes:
        importance: [B, N] float32; threshold: [B] float32, less the margin that the op was given.
        counts: [B] int64, tokens above their own threshold.
        keep: K, the largest of `counts`.
        source_ids: [B, tokens_out] int32.
        entering_ids: [B, 1 + N] int32, source ids before the step.
    """

    layer: int
    importance: Tensor
    threshold: Tensor
    counts: Tensor
    keep: int
    pruned: bool
    tokens_out: int
    source_ids: Tensor
    entering_ids: Tensor
    min_keep: int

    @property
    def margin(self) -> float:
        """How far, relative to the mean |importance|, a score or the threshold has to move to change what is kept.

        The distances looked at are those that decide: of the K-th score to the threshold in the samples that ask for
        K tokens, of the next score to the threshold in all, and between the K-th and the next score in all.
        """
        if not (self.importance.isfinite().all() and self.threshold.isfinite().all()):
            return 0.0
        ordered = self.importance.sort(dim=1, descending=True).values
        length, distances = ordered.shape[1], [float("inf")]
        if 0 < self.keep <= length:
            deciding = self.counts == self.keep
            distances.append((ordered[:, self.keep - 1] - self.threshold)[deciding].min().item())
        if self.keep < length:
            distances.append((self.threshold - ordered[:, self.keep]).min().item())
        if self.pruned:
            distances.append((ordered[:, self.keep - 1] - ordered[:, self.keep]).min().item())
        return max(0.0, min(distances)) / max(self.importance.abs().mean().item(), 1e-30)


def jaccards(left: Tensor, right: Tensor) -> list[float]:
    """|kept by both| / |kept by either| of each sequence's source ids, [sequences, n] each."""
    pairs = [(set(a), set(b)) for a, b in zip(left.tolist(), right.tolist(), strict=True)]
    return [len(a & b) / len(a | b) for a, b in pairs]


class PruningRecorder(TorchDispatchMode):
    """Context in which every pruning step of a model is recorded, in the order in which they run.

    Attributes:
        records: one per `token_compact` call, and one per request of a `packed_token_compact` call; the NLVR model's
            vision layers come first, then its text layers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.records: list[CompactRecord] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is torch.ops.madtp.token_compact.default:
            self.records.append(_record(args, output))
        elif func is torch.ops.madtp.packed_token_compact.default:
            self.records.extend(_packed_records(args, output))
        return output


def _packed_records(args: Sequence[Any], output: Sequence[Tensor]) -> Iterator[CompactRecord]:
    """A record for every request, as of a call of `token_compact` with its sequences, which are equally long."""
    *columns, cu_seqlens, temperature, min_keep, capacity, _, layer = args[:12]
    before, after = list(spans(cu_seqlens)), list(spans(output[3]))
    if capacity != EXACT and int(output[4]) > len(output[0]):
        raise ValueError("the sequences did not fit")
    requests = len(min_keep)
    for request in range(requests):
        own = slice(request, None, requests)
        whole = [torch.stack([column[rows] for rows in before[own]]) for column in columns[:3]]
        scored = [torch.stack([column[rows][1:] for rows in before[own]]) for column in columns[3:]]
        result = [torch.stack([column[rows] for rows in after[own]]) for column in output[:3]]
        yield _record((*whole, *scored, temperature, min_keep[request], layer, *args[12:]), result)


def _record(args: Sequence[Any], output: Sequence[Tensor]) -> CompactRecord:
    tokens, _, entering_ids, column_score, class_score, alignment, temperature, min_keep, layer = args[:9]
    keep_margin = args[9] if len(args) > 9 else 0.0  # torch leaves out what is the default
    importance = token_importance(column_score, class_score, alignment)
    threshold = importance.new_full((tokens.shape[0],), -torch.inf)
    counts = torch.full((tokens.shape[0],), importance.shape[1])
    if temperature > 0:
        threshold = learned_threshold(importance, alignment, temperature, keep_margin)
        counts = counts_above(importance, threshold)
    tokens_out = output[0].shape[1]
    return CompactRecord(
        layer=layer,
        importance=importance,
        threshold=threshold,
        counts=counts,
        keep=int(counts.max()),
        pruned=tokens_out != tokens.shape[1],
        tokens_out=tokens_out,
        source_ids=output[2],
        entering_ids=entering_ids,
        min_keep=int(min_keep),
    )
