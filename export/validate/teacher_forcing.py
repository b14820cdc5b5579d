"""What a decoder makes of a given text: its logits after every id. One that is off may still write the same text."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from madtp.models.decoder import DecoderSession
from madtp.tasks.requests import Outputs, Runner, Runners, decoder_step

TEXT_LOGITS = "text_logits"  # of the text that torch wrote, after every id

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Text:
    """A text of every request of a batch: [B, length] ids, of which the first `prompt` were given."""

    ids: Tensor
    prompt: int


def written_text(inputs: Inputs, outputs: Outputs) -> Text | None:
    """What a decoder wrote for a batch of requests; None of tasks that write nothing."""
    if "caption_ids" in outputs:
        return Text(outputs["caption_ids"], inputs["prompt_ids"].shape[1])
    return Text(outputs["answer_ids"], 1) if "answer_ids" in outputs else None


class NotedEncoder:
    """An encoder whose latest `source_cache`, which the decoder reads, is put aside."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.source: Tensor | None = None

    def run(self, inputs: Inputs, temperature: float) -> Outputs:
        outputs = self._runner.run(inputs, temperature)
        self.source = outputs.get("source_cache")
        return outputs


def noted_runners(runners: Runners) -> dict[str, Runner]:
    """The same, of models that write with an encoder that notes what `read_text` needs."""
    return {
        name: NotedEncoder(runner) if name == "encoder" and "decoder" in runners else runner
        for name, runner in runners.items()
    }


def read_text(runners: Runners, text: Text) -> Tensor:
    """[B, ids, V]: the decoder's logits while it reads a text about the batch that was answered last, id by id.

    Args:
        runners: of `noted_runners`.
        text: of every request of that batch.
    """
    encoder = runners["encoder"]
    if not isinstance(encoder, NotedEncoder) or encoder.source is None:
        raise ValueError("nothing was answered before")
    session = DecoderSession(decoder_step(runners["decoder"]), encoder.source, 1)
    pieces = text.ids.split([text.prompt] + [1] * (text.ids.shape[1] - text.prompt), dim=1)
    return torch.stack([session(piece.contiguous(), None) for piece in pieces[:-1]], dim=1)
