"""How far does an answer depend on its batch mates? And does the artifact depend on them as torch does?"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from export.engine.range import Range
from export.validate.contestants import Answer
from export.validate.pairs import Comparison
from export.validate.parity import DECIDED_AS_WRITTEN, DECIDED_BY_LARGEST
from madtp.data.samples import Config, Request, SampleSet, collate, edge_ids
from madtp.tasks.requests import token_counts

PROBES = 2  # samples that are put into batches
BATCH = 4  # requests of such a batch, where the profile allows
HOSTILE_SEED = 0
UNEQUAL = 1e-3  # of an output: larger than rounding, smaller than what another token does


@dataclass(frozen=True)
class Dependence:
    """What changed for one sample between being alone and being in a batch.

    Attributes:
        contestant: whose answers.
        mates: "ordinary" or "hostile".
        slots: batches that it was put in, each at another place.
        tokens: of these, with other token counts than alone; answers: with another answer or other values.
        spread: slots whose token counts or answers differ from the first slot's: the same mates, another place.
    """

    contestant: str
    mates: str
    probe: int
    slots: int
    tokens: int
    answers: int
    spread: int

    def failure(self, layout: str) -> str:
        """What is wrong with it in a layout, in words; empty where nothing is.

        In `dynamic` one K serves a batch, so answers may depend on mates as torch's do; in `packed` every request has
        its own, so nothing may.
        """
        if layout == "packed" and (self.tokens or self.answers):
            return (
                f"{self.contestant}: sample {self.probe} among {self.mates} mates has other tokens in {self.tokens} "
                f"and other answers in {self.answers} of {self.slots} batches than alone"
            )
        return ""

    def to_json(self) -> dict[str, Any]:
        """For the verdict."""
        return asdict(self)


def hostile_request(config: Config, like: Request, text: Range) -> Request:
    """A request of noise and the longest text: images of which nearly all tokens stay, padding for everybody else."""
    generator = torch.Generator().manual_seed(HOSTILE_SEED)
    images = tuple(torch.randn(image.shape, generator=generator) * 3 for image in like.images)
    first, last, longest = edge_ids(config)
    if last is None:  # prompts have one length
        return Request(images, like.ids)
    length = min(longest, text.max) if text.max > 1 else longest
    least = config.vocab_size // 2
    words = torch.randint(least, max(config.vocab_size - 2, least + 1), (length - 2,), generator=generator).tolist()
    return Request(images, [first, *words, last])


def measure_dependence(
    comparison: Comparison,
    config: Config,
    samples: SampleSet,
    temperature: float,
    batch: Range,
    text: Range,
    on_detail: Callable[[str], None],
) -> list[Dependence]:
    """Put samples alone, and into every slot of batches with ordinary and hostile mates.

    Each of these batches is compared between all contestants too: in the same batch they have to agree.

    Returns:
        For each contestant, probe and kind of mates; empty where the profile takes one request a call, or none alone.
    """
    size = min(batch.max, BATCH)
    if size < 2 or batch.min > 1:
        return []
    found = []
    for probe in range(min(PROBES, len(samples))):
        request = samples.requests[probe]
        on_detail(f"sample {probe} alone and in batches of {size}")
        alone = comparison.compare(f"sample {probe} alone", collate([request], config), temperature)
        others = [samples.requests[(probe + offset) % len(samples)] for offset in range(1, size)]
        hostile = [hostile_request(config, request, text), *others[1:]]
        for mates, kind in ((others, "ordinary"), (hostile, "hostile")):
            slots = []
            for slot in range(size):
                requests = [*mates[:slot], request, *mates[slot:]]
                name = f"sample {probe} in slot {slot} among {kind} mates"
                slots.append(comparison.compare(name, collate(requests, config), temperature))
            for contestant, answer in alone.items():
                if all(contestant in slot for slot in slots):  # else it failed to run, which was noted
                    found.append(_dependence(contestant, kind, probe, answer, [slot[contestant] for slot in slots]))
    return found


def _dependence(contestant: str, kind: str, probe: int, alone: Answer, slots: list[Answer]) -> Dependence:
    single = _row(alone, 0)
    rows = [_row(answer, slot) for slot, answer in enumerate(slots)]
    return Dependence(
        contestant,
        kind,
        probe,
        len(rows),
        tokens=sum(not torch.equal(row[0], single[0]) for row in rows),
        answers=sum(_differ(row[1], single[1]) for row in rows),
        spread=sum(not torch.equal(row[0], rows[0][0]) or _differ(row[1], rows[0][1]) for row in rows),
    )


def _row(answer: Answer, slot: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Token counts and answers of one request of a batch."""
    outputs = answer.outputs
    decided = {name: outputs[name] for name in (*DECIDED_BY_LARGEST, *DECIDED_AS_WRITTEN) if name in outputs}
    requests = len(next(iter(decided.values())))
    counts = [value.unflatten(0, (-1, requests))[:, slot].flatten() for value in token_counts(outputs).values()]
    # Of similarities only its own: those to its mates are others with other mates.
    rows = {name: value[slot, slot : slot + 1] if name == "sim" else value[slot] for name, value in decided.items()}
    return torch.cat(counts), rows


def _differ(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return any(
        value.shape != right[name].shape or not torch.allclose(value.double(), right[name].double(), atol=UNEQUAL)
        for name, value in left.items()
    )
