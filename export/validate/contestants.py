"""What is compared: the torch model and the runtimes of its artifact, behind one call that also tells what was kept."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from export.validate.intermediates import WatchedRunner
from export.validate.teacher_forcing import Text, noted_runners, read_text
from madtp.checkpoint.loading import Model
from madtp.data.samples import Config
from madtp.models.parts import Part, encoder_layers, parts_of
from madtp.ops.products import WideProducts
from madtp.ops.recorder import CompactRecord, PruningRecorder
from madtp.ops.tf32 import forbid_tf32
from madtp.tasks.requests import Outputs, Runners, TorchRunner, count_tokens, run_request, token_counts

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """What one pruned layer did.

    Attributes:
        encoder, index: which one.
        tokens: after it, class token included.
        source_ids: [sequences, tokens] int32; None where they cannot be seen, or at temperature zero.
        record: scores and threshold; torch alone has them.
    """

    encoder: str
    index: int
    tokens: int
    source_ids: Tensor | None = None
    record: CompactRecord | None = None


@dataclass(frozen=True)
class Answer:
    """What a batch of requests came to: outputs by name, and every layer in the order in which they run."""

    outputs: Outputs
    layers: list[Layer]


class Contestant(Protocol):
    """Torch, ONNX Runtime or TensorRT with all parts of a model."""

    name: str

    def answer(self, inputs: Inputs, temperature: float) -> Answer:
        """Run a batch of requests (`madtp.data.samples.collate`); BackendError where it cannot be run."""
        ...

    def text_logits(self, text: Text) -> Tensor:
        """[B, ids, V]: the decoder's logits while it reads a text about the latest answer's batch."""
        ...


class CastRunner(TorchRunner):
    """A part in torch whose floating-point inputs are turned into the type of its weights."""

    def __init__(self, part: Part, dtype: torch.dtype) -> None:
        super().__init__(part)
        self._dtype = dtype

    def run(self, inputs: Inputs, temperature: float) -> Outputs:
        cast = {name: value.to(self._dtype) if value.is_floating_point() else value for name, value in inputs.items()}
        with WideProducts():  # or the yardstick would depend on the host
            return super().run(cast, temperature)


class TorchContestant:
    """The model in torch, in one floating-point type; a temperature of zero runs it dense.

    Args:
        name: "torch", or another for a yardstick.
        model: stays as it is; other types than its own are a copy's.
        dtype: of weights and images.
    """

    def __init__(self, name: str, model: Model, dtype: torch.dtype) -> None:
        forbid_tf32()
        self.name = name
        self.config: Config = model.config
        held = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
        self.parts = parts_of(held)
        self._layers = encoder_layers(self.parts)
        self.runners = noted_runners({part: CastRunner(self.parts[part], dtype) for part in self.parts})

    def text_logits(self, text: Text) -> Tensor:
        return read_text(self.runners, text)

    def answer(self, inputs: Inputs, temperature: float) -> Answer:
        with PruningRecorder() as recorder:
            outputs = run_request(self.config, self.runners, inputs, temperature)
        if not recorder.records:
            return Answer(outputs, counted_layers(self._layers, outputs))
        layers = [
            Layer(encoder, index, record.tokens_out, record.source_ids, record)
            for (encoder, index), record in zip(self._layers, recorder.records, strict=True)
        ]
        return Answer(outputs, layers)


class RuntimeContestant:
    """The artifact, or ONNX traced from its checkpoint.

    Args:
        name: "onnx" or "plan".
        config: of the model.
        parts: of the model.
        runners: of the parts, as they are shipped.
        watched: the parts that prune, made to show which tokens they keep; none: only counts are seen.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        parts: Mapping[str, Part],
        runners: Runners,
        watched: Mapping[str, WatchedRunner],
    ) -> None:
        self.name = name
        self._config, self._runners = config, noted_runners(runners)
        self._layers = encoder_layers(parts)
        self._watched = {part: watched[part] for part in parts if part in watched}

    def text_logits(self, text: Text) -> Tensor:
        return read_text(self._runners, text)

    def answer(self, inputs: Inputs, temperature: float) -> Answer:
        outputs = run_request(self._config, self._runners, inputs, temperature)
        layers = counted_layers(self._layers, outputs)
        if not self._watched or temperature <= 0:
            return Answer(outputs, layers)
        # What is shipped gives the outputs, a copy with more outputs the ids: the copy may be optimised differently.
        count_tokens(self._config, {**self._runners, **self._watched}, inputs, temperature)
        ids = [value for runner in self._watched.values() for value in runner.ids]
        if len(ids) != len(layers):
            return Answer(outputs, layers)  # it prunes otherwise than an export would: its counts tell
        if any(layer.tokens != value.shape[1] for layer, value in zip(layers, ids, strict=True)):
            return Answer(outputs, layers)  # at a threshold, the copy rounded the other way
        return Answer(
            outputs,
            [Layer(layer.encoder, layer.index, layer.tokens, value) for layer, value in zip(layers, ids, strict=True)],
        )


def counted_layers(names: list[tuple[str, int]], outputs: Outputs) -> list[Layer]:
    """The layers as far as the token counts tell; one K serves the whole batch, so row 0 stands for all."""
    counts = [int(count) for encoder in token_counts(outputs).values() for count in encoder[0]]
    return [Layer(encoder, index, count) for (encoder, index), count in zip(names, counts, strict=True)]
