"""NLVR in the packed layout, no size of which depends on data: requests, rooms of its layers, captured batches."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.kit.stage import StageRun
from benchmarks.kit.stages.captured import Captured
from benchmarks.kit.stages.model import find_temperature, forward, giga
from benchmarks.kit.stages.models import WORDS
from benchmarks.requests import varied_requests
from madtp import NlvrModel
from madtp.data.samples import collate
from madtp.models.nlvr import NlvrOutput

SHARE = 0.2  # of the dense model's GFLOPs: 80 % fewer
STEPS, REHEARSED_STEPS = 10, 3  # of the search for its temperature
SOUGHT = 8  # requests with which it is sought
CHUNK = 32  # requests that are counted at once
MULTIPLE = 16  # rows to which rooms are rounded up, as tiles of kernels are
# Over what the exact model needs: products of other sizes round differently, and a token at the threshold may go over.
HEADROOM = 1.01
STARTS = (0, 64, 37)  # of the batches of each size: first requests in the pool
ENCODERS = ("vision", "text")
Rooms = dict[str, tuple[int, ...]]  # by encoder, rows after each layer


@dataclass(frozen=True)
class PackedNlvr:
    """The model, dense, exact and with rooms, on one set of weights, and a pool of requests on the stage's device.

    Attributes:
        stage: the stage that runs it.
        model: in the dynamic layout.
        pool: inputs of all requests, texts filled up to WORDS.
        tau: the temperature.
    """

    stage: StageRun
    model: NlvrModel
    pool: Mapping[str, Tensor]
    tau: float

    @classmethod
    def seek(cls, stage: StageRun, model: NlvrModel, pool: Mapping[str, Tensor]) -> "PackedNlvr":
        """At the temperature that leaves SHARE of the dense GFLOPs."""
        some = {name: tensor[:SOUGHT] for name, tensor in pool.items()}
        wanted = SHARE * giga(partial(forward, model, some, 0.0))
        steps = REHEARSED_STEPS if stage.rehearse else STEPS
        return cls(stage, model, pool, find_temperature(model.packed_copy(), some, wanted, steps))

    @property
    def requests(self) -> int:
        """How many there are in the pool."""
        return len(self.pool["input_ids"])

    @cached_property
    def exact(self) -> NlvrModel:
        """As many rows as are needed."""
        return self.model.packed_copy()

    @cached_property
    def temperature(self) -> Tensor:
        """On the device."""
        return torch.full((), self.tau, device=self.stage.device)

    def sized(self, rooms: Rooms) -> NlvrModel:
        """With these rooms."""
        model = self.model.packed_copy(sized=True)
        model.visual_encoder.capacities, model.text_encoder.capacities = (rooms[name] for name in ENCODERS)
        return model

    def batch(self, size: int, start: int = 0) -> dict[str, Tensor]:
        """So many requests of the pool, from one of them on and around."""
        places = (torch.arange(size, device=self.stage.device) + start) % self.requests
        return {name: tensor.index_select(0, places) for name, tensor in self.pool.items()}

    @cached_property
    def rows(self) -> dict[str, Tensor]:
        """By encoder, rows of each request after each layer, [requests, layers] on the CPU."""
        found: dict[str, list[Tensor]] = {name: [] for name in ENCODERS}
        for start in range(0, self.requests, CHUNK):
            chunk = self.batch(min(CHUNK, self.requests - start), start)
            output = answer(self.exact, chunk, self.temperature)
            found["vision"].append(output.vision_token_counts.unflatten(0, (2, -1)).sum(dim=0).cpu())
            found["text"].append(output.text_token_counts.cpu())
        return {name: torch.cat(counts) for name, counts in found.items()}

    def rooms(self, size: int) -> Rooms:
        """Enough for every batch of this size at STARTS, rounded up."""
        batches = [(torch.arange(size) + start) % self.requests for start in STARTS]
        most = self.lossless(size)
        return {
            name: tuple(
                min(MULTIPLE * math.ceil(HEADROOM * needed / MULTIPLE), most[name][layer])
                for layer, needed in enumerate(
                    torch.stack([counts[batch].sum(dim=0) for batch in batches]).amax(dim=0).tolist()
                )
            )
            for name, counts in self.rows.items()
        }

    def lossless(self, size: int) -> Rooms:
        """Enough for any batch of this size."""
        config = self.model.config
        longest = {"vision": 2 * config.vision_tokens, "text": WORDS}
        depth = {"vision": config.vit_depth, "text": config.text_layers}
        return {name: (size * longest[name],) * depth[name] for name in ENCODERS}


def too_small(rooms: Rooms, size: int) -> Rooms:
    """In the last layer of the images a row for each, and every image keeps two at least: that has to overflow."""
    return {**rooms, "vision": (*rooms["vision"][:-1], 2 * size)}


def packed_requests(stage: StageRun, model: NlvrModel, count: int) -> dict[str, Tensor]:
    """A pool of varied requests on the stage's device, texts filled up to WORDS."""
    given = collate(varied_requests(model.config, count, longest=WORDS), model.config)
    filled = {
        name: F.pad(tensor, (0, WORDS - tensor.shape[1])) if tensor.dim() == 2 else tensor
        for name, tensor in given.items()
    }
    return {name: tensor.to(stage.device) for name, tensor in filled.items()}


def answer(model: NlvrModel, inputs: Mapping[str, Tensor], temperature: Tensor) -> NlvrOutput:
    """Of a batch, uncaptured."""
    with torch.inference_mode():
        return model(**inputs, temperature=temperature)


class RowsNeeded(TorchDispatchMode):
    """Context that notes the rows that every compaction's sequences need, and how many there is room for."""

    def __init__(self) -> None:
        super().__init__()
        self.needed: list[Tensor] = []
        self.room: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is torch.ops.madtp.packed_token_compact.default:
            self.needed.append(output[4])
            self.room.append(len(output[0]))
        return output


class PackedBatch:
    """Batches of one size, captured: `load` one, call, and look at `output` and `overflowed`.

    Attributes:
        model: what was captured.
        inputs: what the captured call reads.
        room: rows of all layers together.
        overflows: [] int64 on the device, calls in which a layer had too little room.
    """

    def __init__(self, packed: PackedNlvr, size: int, rooms: Rooms) -> None:
        self.model, self._temperature = packed.sized(rooms), packed.temperature
        self.inputs = packed.batch(size)
        self.overflows = torch.zeros((), dtype=torch.int64, device=packed.stage.device)
        with RowsNeeded() as noted:
            answer(self.model, self.inputs, self._temperature)
        self.room = sum(noted.room)
        self._rooms = torch.tensor(noted.room, device=packed.stage.device)
        self.replay = Captured(self.run, packed.stage)

    def run(self) -> tuple[NlvrOutput, Tensor]:
        """Uncaptured: what the model gives, and [] bool, whether a layer had too little room."""
        with torch.inference_mode(), RowsNeeded() as noted:
            output = self.model(**self.inputs, temperature=self._temperature)
            overflow = (torch.stack(noted.needed) > self._rooms).any()
            self.overflows += overflow
        return output, overflow

    def load(self, inputs: Mapping[str, Tensor]) -> None:
        """Copy a batch to where the captured call reads it."""
        for name, tensor in inputs.items():
            self.inputs[name].copy_(tensor)

    @property
    def output(self) -> NlvrOutput:
        """Of the last call."""
        found: NlvrOutput = self.replay.outputs[0]
        return found

    @property
    def overflowed(self) -> bool:
        """Whether a layer had too little room in the last call; its output then means nothing."""
        return bool(self.replay.outputs[1])

    def __call__(self) -> None:
        self.replay()
