"""Batches of the packed layout: what every request has to give is what torch gives for it alone.

A batch of a packed artifact is taken apart into its requests, and each is compared with torch, which runs it by itself
in the dynamic layout.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from export.validate.model_runner import Inputs, ModelRunner
from export.validate.run_result import LayerTokens, RunResult
from export.validate.teacher_forcing import TEXT_LOGITS, GeneratedText, generated_text
from madtp.data.samples import Config
from madtp.tasks.requests import COUNTS_SUFFIX, Outputs, token_counts

PADDED_TEXTS = ("nlvr", "vqa")  # whose texts are filled up only to make a batch of them
TOKENS = ("image_tokens", "image_states", "question_states")  # outputs [B, n, C] that are filled up with zeros
LENGTHS = ("image_lengths", "source_lengths")  # outputs that say up to where
PAIRED = "sim"


def inputs_alone(config: Config, inputs: Inputs) -> list[Inputs]:
    """The inputs of every request of a batch, its text as long as it is."""
    requests = len(next(iter(inputs.values())))
    found: list[Inputs] = []
    for index in range(requests):
        own = {name: value[index : index + 1] for name, value in inputs.items()}
        if config.task in PADDED_TEXTS:
            words = int(own["attention_mask"].sum())
            own |= {name: own[name][:, :words] for name in ("input_ids", "attention_mask")}
        found.append(own)
    return found


def run_batch_of(
    runner: ModelRunner, inputs: Inputs, temperature: float, alone: Sequence[tuple[Inputs, RunResult]], pad_id: int
) -> RunResult:
    """Run a batch; where text is generated, with logits after every id of the texts that torch wrote for the requests.

    Args:
        alone: inputs and torch's result of every request.
    """
    result = runner.run(inputs, temperature)
    texts = [generated_text(own, single.outputs) for own, single in alone]
    given = [text for text in texts if text is not None]
    if not given:
        return result
    ids = pad_sequence([text.ids[0] for text in given], batch_first=True, padding_value=pad_id)
    logits = runner.text_logits(GeneratedText(ids, given[0].prompt))
    return replace(result, outputs={**result.outputs, TEXT_LOGITS: logits})


def split_requests(result: RunResult, alone: Sequence[RunResult]) -> list[RunResult]:
    """The result of every request of a batch that a packed artifact ran.

    Args:
        result: its layers have the source ids of all sequences end to end, or none.
        alone: torch's results, which say how long a text is that logits are of.
    """
    requests = len(alone)
    ids = [layer.source_ids for layer in result.layers]
    counts = [column for rows in token_counts(result.outputs).values() for column in rows.unbind(dim=1)]
    spans = [_spans(column) for column in counts]
    found = []
    for index, single in enumerate(alone):
        layers = []
        for layer, known, column, places in zip(result.layers, ids, counts, spans, strict=True):
            own = range(index, len(column), requests)
            most = max(int(column[sequence]) for sequence in own)
            even = all(int(column[sequence]) == most for sequence in own)
            kept = torch.stack([known[places[s]] for s in own]) if known is not None and even else None
            layers.append(LayerTokens(layer.encoder, layer.index, most, kept))
        found.append(RunResult(_own_outputs(result.outputs, index, requests, single), layers))
    return found


def _spans(column: Tensor) -> list[slice]:
    ends = column.cumsum(0).tolist()
    return [slice(end - count, end) for end, count in zip(ends, column.tolist(), strict=True)]


def _own_outputs(outputs: Outputs, index: int, requests: int, alone: RunResult) -> Outputs:
    own: Outputs = {}
    lengths = next((outputs[name] for name in LENGTHS if name in outputs), None)
    for name, value in outputs.items():
        if name.endswith(COUNTS_SUFFIX):
            own[name] = value.unflatten(0, (-1, requests))[:, index]
        elif name in LENGTHS:
            continue
        elif name == PAIRED:
            own[name] = value[index : index + 1, index : index + 1]
        elif name in TOKENS and lengths is not None:
            own[name] = value[index : index + 1, : int(lengths[index])]
        elif name == TEXT_LOGITS:
            own[name] = value[index : index + 1, : alone.outputs[TEXT_LOGITS].shape[1]]
        else:
            own[name] = value[index : index + 1]
    return own
