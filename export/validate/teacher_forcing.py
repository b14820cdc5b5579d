"""Teacher forcing: a decoder's logits after every id of a given text, which tell more than the text it generates."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from madtp.models.decoder import DecoderSession, Source
from madtp.tasks.requests import Outputs, Runner, Runners, decoder_step, source_of

TEXT_LOGITS = "text_logits"  # the output's name

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class GeneratedText:
    """A text for every request of a batch: [B, length] ids, of which the first `prompt` were given."""

    ids: Tensor
    prompt: int


def generated_text(inputs: Inputs, outputs: Outputs) -> GeneratedText | None:
    """The text that a decoder generated for a batch of requests; None for tasks that generate none."""
    if "caption_ids" in outputs:
        return GeneratedText(outputs["caption_ids"], inputs["prompt_ids"].shape[1])
    return GeneratedText(outputs["answer_ids"], 1) if "answer_ids" in outputs else None


class SourceCacheRecorder:
    """An encoder that keeps the latest source, which the decoder reads."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.source: Source | None = None

    def run(self, inputs: Inputs, temperature: float) -> Outputs:
        outputs = self._runner.run(inputs, temperature)
        self.source = source_of(outputs) if "source_cache" in outputs else None
        return outputs


def teacher_forcing_runners(runners: Runners) -> dict[str, Runner]:
    """The same runners; for models that generate, with an encoder that keeps what `forced_logits` needs."""
    return {
        name: SourceCacheRecorder(runner) if name == "encoder" and "decoder" in runners else runner
        for name, runner in runners.items()
    }


def forced_logits(runners: Runners, text: GeneratedText) -> Tensor:
    """[B, ids, V]: logits of the decoder while it reads a text id by id, for the batch that was run last.

    The runners are those of `teacher_forcing_runners`.
    """
    encoder = runners["encoder"]
    if not isinstance(encoder, SourceCacheRecorder) or encoder.source is None:
        raise ValueError("nothing was run before")
    session = DecoderSession(decoder_step(runners["decoder"]), encoder.source, 1)
    pieces = text.ids.split([text.prompt] + [1] * (text.ids.shape[1] - text.prompt), dim=1)
    return torch.stack([session(piece.contiguous(), None) for piece in pieces[:-1]], dim=1)
