"""What is compared: torch, ONNX Runtime and TensorRT, each with all parts of a model and the tokens that it keeps."""

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from export.runtime.intermediates_runner import KeptIdsRunner
from export.validate.narrow_model import narrow_input, narrow_model
from export.validate.run_result import LayerTokens, RunResult
from export.validate.teacher_forcing import GeneratedText, forced_logits, teacher_forcing_runners
from madtp.checkpoint.loading import Model
from madtp.data.samples import Config
from madtp.models.parts import Part, encoder_layers, parts_of
from madtp.ops.flops import count_call
from madtp.ops.products import WideProducts
from madtp.ops.recorder import PruningRecorder
from madtp.ops.tf32 import forbid_tf32
from madtp.tasks.requests import Outputs, Runners, TorchRunner, count_tokens, run_request, token_counts

Inputs = Mapping[str, Tensor]


class ModelRunner(Protocol):
    """Torch, ONNX Runtime or TensorRT with all parts of a model."""

    name: str

    def run(self, inputs: Inputs, temperature: float) -> RunResult:
        """Run a batch of requests (`madtp.data.samples.collate`); BackendError where it cannot be run."""
        ...

    def text_logits(self, text: GeneratedText) -> Tensor:
        """[B, ids, V]: logits of the decoder, teacher-forced with a text for the batch that was run last."""
        ...


class CastRunner(TorchRunner):
    """A part in torch whose floating-point inputs are cast to the type that its layers take."""

    def __init__(self, part: Part, dtype: torch.dtype) -> None:
        super().__init__(part)
        self._dtype = dtype

    def run(self, inputs: Inputs, temperature: float) -> Outputs:
        cast = {name: narrow_input(value, self._dtype) for name, value in inputs.items()}
        with WideProducts(float32=self._dtype == torch.bfloat16):  # or 16-bit references would depend on the host
            return super().run(cast, temperature)


class TorchModelRunner:
    """The model in torch, in one floating-point type; a temperature of zero runs it dense.

    `model` itself is not changed: another type than its own is a copy, made when it first runs. `context` may compute
    weight products otherwise (`export.graph.quantize`).

    Attributes:
        gflops: of the latest run, where it `counts`; a generated text counts with the length that it got.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        dtype: torch.dtype,
        context: Callable[[], AbstractContextManager[None]] = nullcontext,
        *,
        counts: bool = False,
    ) -> None:
        forbid_tf32()
        self.name, self.gflops, self._counts = name, 0.0, counts
        self.config: Config = model.config
        self.model, self._dtype, self._context = model, dtype, context

    @cached_property
    def parts(self) -> dict[str, Part]:
        """The model's parts in this type."""
        if next(self.model.parameters()).dtype == self._dtype:
            return parts_of(self.model)
        cast = cast_model if self._dtype == torch.float64 else narrow_model
        return parts_of(cast(self.model, self._dtype))

    @cached_property
    def runners(self) -> Runners:
        """A runner for every part."""
        return teacher_forcing_runners({name: CastRunner(part, self._dtype) for name, part in self.parts.items()})

    def text_logits(self, text: GeneratedText) -> Tensor:
        with self._context():
            return forced_logits(self.runners, text)

    def run(self, inputs: Inputs, temperature: float) -> RunResult:
        outputs: Outputs = {}

        def run() -> None:
            with self._context():
                outputs.update(run_request(self.config, self.runners, inputs, temperature))

        with PruningRecorder() as recorder:  # around the counting, which shall not see what recording computes
            if self._counts:
                self.gflops = count_call(run).giga
            else:
                run()
        names = encoder_layers(self.parts)
        if not recorder.records:
            return RunResult(outputs, counted_layers(names, outputs))
        layers = [
            LayerTokens(encoder, index, record.tokens_out, record.source_ids, record)
            for (encoder, index), record in zip(names, recorder.records, strict=True)
        ]
        return RunResult(outputs, layers)


def cast_model(model: Model, dtype: torch.dtype) -> Model:
    """A copy in another type; its weights are copied once, into that type."""
    cast: dict[int, Tensor] = {
        id(weight): nn.Parameter(weight.detach().to(dtype), requires_grad=False) for weight in model.parameters()
    }
    cast |= {id(value): value.to(dtype) if value.is_floating_point() else value for value in model.buffers()}
    return copy.deepcopy(model, cast)


class ArtifactRunner:
    """The artifact's ONNX ("onnx") or plan ("plan"), or ONNX traced from its checkpoint.

    `runners` run the parts as they are shipped, `kept_ids` those that prune, with kept-token ids; without, only token
    counts are visible.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        parts: Mapping[str, Part],
        runners: Runners,
        kept_ids: Mapping[str, KeptIdsRunner],
    ) -> None:
        self.name = name
        self._config, self._runners = config, teacher_forcing_runners(runners)
        self._layers = encoder_layers(parts)
        self._kept_ids = {part: kept_ids[part] for part in parts if part in kept_ids}

    def text_logits(self, text: GeneratedText) -> Tensor:
        return forced_logits(self._runners, text)

    def run(self, inputs: Inputs, temperature: float) -> RunResult:
        outputs = _owned(run_request(self._config, self._runners, inputs, temperature))
        result = RunResult(outputs, counted_layers(self._layers, outputs))
        if not self._kept_ids or temperature <= 0:
            return result
        # Outputs are those of what is shipped, ids those of a copy with more outputs: it may be optimised differently.
        runners = {**self._runners, **self._kept_ids}
        return with_kept_ids(result, run_kept_ids(self._config, runners, inputs, temperature))


def run_kept_ids(config: Config, runners: Runners, inputs: Inputs, temperature: float) -> list[Tensor]:
    """[sequences, tokens] int32 for each layer that prunes: the source ids of its tokens in one batch.

    Of the runners, which are all parts but a decoder, those that prune are `KeptIdsRunner`.
    """
    count_tokens(config, runners, inputs, temperature)
    return [ids.clone() for runner in runners.values() if isinstance(runner, KeptIdsRunner) for ids in runner.ids]


def _owned(outputs: Outputs) -> Outputs:
    """Copies: a closed session of ONNX Runtime frees no working memory while any of its outputs is held."""
    return {name: value.clone() for name, value in outputs.items()}


def with_kept_ids(result: RunResult, ids: list[Tensor]) -> RunResult:
    """A result with ids that a copy of the artifact gave, unless the copy kept another number of tokens."""
    if len(ids) != len(result.layers):
        return result  # it prunes otherwise than an export would: its counts tell
    if _kept(result, ids) != [value.numel() if value.dim() == 1 else value.shape[1] for value in ids]:
        return result  # at a threshold, the copy rounded the other way
    layers = [replace(layer, source_ids=value) for layer, value in zip(result.layers, ids, strict=True)]
    return replace(result, layers=layers)


def _kept(result: RunResult, ids: list[Tensor]) -> list[int]:
    """Tokens of each layer; where `ids` are those of all sequences end to end, of all sequences."""
    totals = [int(total) for rows in token_counts(result.outputs).values() for total in rows.sum(dim=0)]
    return [
        total if value.dim() == 1 else layer.tokens
        for layer, value, total in zip(result.layers, ids, totals, strict=True)
    ]


def counted_layers(names: list[tuple[str, int]], outputs: Outputs) -> list[LayerTokens]:
    """The layers as far as the token counts tell: those of row 0, which stands for all unless the batch is packed."""
    counts = [int(count) for encoder in token_counts(outputs).values() for count in encoder[0]]
    return [LayerTokens(encoder, index, count) for (encoder, index), count in zip(names, counts, strict=True)]
