"""Batch invariance: how far an answer depends on the other requests of its batch, in torch and in the artifact."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from export.engine.range import Range
from export.validate.comparator import Comparator
from export.validate.run_result import RunResult
from madtp.data.samples import Config, Request, SampleSet, collate, edge_ids
from madtp.tasks.decisions import DECIDED_AS_WRITTEN, DECIDED_BY_LARGEST, strip_padding
from madtp.tasks.requests import token_counts

PROBES = 2  # samples that are put into batches
BATCH = 4  # requests of such a batch, where the profile allows
HOSTILE_SEED = 0
UNEQUAL = 1e-3  # of an output: larger than rounding, smaller than what another token does


@dataclass(frozen=True)
class BatchInvariance:
    """How one sample's result in a batch differs from its result alone.

    Attributes:
        others: "ordinary" or "hostile" requests that fill the batch.
        probe: index of the sample.
        slots: batches, with the sample at another index in each.
        tokens: slots whose token counts differ from those alone.
        answers: slots whose answer or values differ from those alone.
        spread: slots whose token counts or answers differ from the first slot's.
    """

    runner: str
    others: str
    probe: int
    slots: int
    tokens: int
    answers: int
    spread: int

    def failure(self, layout: str) -> str:
        """What is wrong with it in a layout; empty where nothing is.

        In `dynamic` one K serves a batch, so answers may depend on the batch as torch's do; in `packed` every request
        has its own, so nothing may.
        """
        if layout == "packed" and (self.tokens or self.answers):
            return (
                f"{self.runner}: sample {self.probe} among {self.others} requests has other tokens in {self.tokens} "
                f"and other answers in {self.answers} of {self.slots} batches than alone"
            )
        return ""

    def to_json(self) -> dict[str, Any]:
        """An entry of `batch_mates`."""
        values = asdict(self)
        return {"contestant": values.pop("runner"), "mates": values.pop("others"), **values}


def hostile_request(config: Config, like: Request, text: Range) -> Request:
    """A request of noise and the longest text: its images keep nearly all tokens, and it pads every other text."""
    generator = torch.Generator().manual_seed(HOSTILE_SEED)
    images = tuple(torch.randn(image.shape, generator=generator) * 3 for image in like.images)
    first, last, longest = edge_ids(config)
    if last is None:  # prompts have one length
        return Request(images, like.ids)
    length = min(longest, text.max) if text.max > 1 else longest
    least = config.vocab_size // 2
    words = torch.randint(least, max(config.vocab_size - 2, least + 1), (length - 2,), generator=generator).tolist()
    return Request(images, [first, *words, last])


def measure_batch_invariance(
    comparator: Comparator,
    config: Config,
    samples: SampleSet,
    temperature: float,
    batch: Range,
    text: Range,
    on_detail: Callable[[str], None],
) -> list[BatchInvariance]:
    """Run samples alone, and in every slot of batches with ordinary and hostile requests.

    All runners are compared on each of these batches too: in the same batch they have to agree. The result is empty
    where the profile takes one request per call, or none alone.
    """
    size = min(batch.max, BATCH)
    if size < 2 or batch.min > 1:
        return []
    found = []
    for probe in range(min(PROBES, len(samples))):
        request = samples.requests[probe]
        on_detail(f"sample {probe} alone and in batches of {size}")
        alone = comparator.compare(f"sample {probe} alone", collate([request], config), temperature)
        ordinary = [samples.requests[(probe + offset) % len(samples)] for offset in range(1, size)]
        hostile = [hostile_request(config, request, text), *ordinary[1:]]
        for others, kind in ((ordinary, "ordinary"), (hostile, "hostile")):
            slots = []
            for slot in range(size):
                requests = [*others[:slot], request, *others[slot:]]
                name = f"sample {probe} in slot {slot} among {kind} requests"
                slots.append(comparator.compare(name, collate(requests, config), temperature))
            for runner, single in alone.items():
                if all(runner in slot for slot in slots):  # otherwise it failed to run, which is a failure already
                    batched = [slot[runner] for slot in slots]
                    found.append(batch_invariance(runner, kind, probe, single, batched, comparator.pad_id))
    return found


def batch_invariance(
    runner: str, others: str, probe: int, alone: list[RunResult], slots: list[list[RunResult]], pad_id: int
) -> BatchInvariance:
    """Compare a sample's result alone with its results in the slots of batches, slot 0 first.

    Results are those of `Comparator.compare`.
    """
    single = _row(alone, 0, pad_id)
    rows = [_row(result, slot, pad_id) for slot, result in enumerate(slots)]
    return BatchInvariance(
        runner,
        others,
        probe,
        len(rows),
        tokens=sum(not torch.equal(row[0], single[0]) for row in rows),
        answers=sum(_differ(row[1], single[1]) for row in rows),
        spread=sum(not torch.equal(row[0], rows[0][0]) or _differ(row[1], rows[0][1]) for row in rows),
    )


def _row(results: list[RunResult], slot: int, pad_id: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Token counts and answers of one request of a batch."""
    result, slot = (results[0], slot) if len(results) == 1 else (results[slot], 0)
    outputs = result.outputs
    decided = {name: outputs[name] for name in (*DECIDED_BY_LARGEST, *DECIDED_AS_WRITTEN) if name in outputs}
    requests = len(next(iter(decided.values())))
    counts = [value.unflatten(0, (-1, requests))[:, slot].flatten() for value in token_counts(outputs).values()]
    rows = {}
    for name, value in decided.items():
        row = value[slot]
        if name == "sim":  # its own similarity alone: those to the other requests change with them
            row = row[slot : slot + 1]
        elif name in DECIDED_AS_WRITTEN:  # as long as the batch's longest text
            row = torch.tensor(strip_padding(row[None], pad_id)[0])
        rows[name] = row
    return torch.cat(counts), rows


def _differ(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return any(
        value.shape != right[name].shape or not torch.allclose(value.double(), right[name].double(), atol=UNEQUAL)
        for name, value in left.items()
    )
