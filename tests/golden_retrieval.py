"""Replay recorded retrieval cases: single batches through the three parts, and the whole evaluation."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from madtp.checkpoint import load_state
from madtp.config import RetrievalConfig
from madtp.pruning import PruningState
from madtp.ranking import rank
from madtp.recorder import PruningRecorder
from madtp.retrieval import RetrievalModel
from tests.golden import FLOAT64_FACTOR, TOLERANCE, GoldenCase, LayerTrace, Replay, Verdict, _recorded_layers, compare


@dataclass(frozen=True)
class Evaluation:
    """How the recorded evaluation cut its data."""

    image_batch: int
    k_test: int


@dataclass(frozen=True)
class RetrievalCase(GoldenCase):
    """A recorded run: one batch of pairs, or (with `evaluation`) a whole evaluation."""

    evaluation: Evaluation | None


def load_model(folder: Path) -> RetrievalModel:
    """The model of a golden folder."""
    values = json.loads((folder / "config.json").read_text())
    config = RetrievalConfig(**{k: value for k, value in values.items() if k in RetrievalConfig.__dataclass_fields__})
    with torch.device("meta"):
        model = RetrievalModel(config)
    load_state(model, load_file(folder / "weights.safetensors"), folder)
    return model.eval()


def load_cases(folder: Path) -> Iterator[RetrievalCase]:
    """The recorded cases of a folder; towers are in the order in which the calls ran."""
    for entry in json.loads((folder / "cases.json").read_text()):
        tensors = load_file(folder / entry["file"])
        outputs = _named(tensors, "output/")
        evaluated = entry.get("kind") == "evaluate"
        yield RetrievalCase(
            entry["name"],
            _named(tensors, "input/"),
            entry["temperature"],
            Replay(outputs, {call["tower"]: _recorded_layers(tensors, call) for call in entry["trace"]}),
            {
                name: max(TOLERANCE, FLOAT64_FACTOR * entry.get("fp64_max_abs_diff", {}).get(name, 0.0))
                for name in outputs
            },
            Evaluation(entry["image_batch"], entry["k_test"]) if evaluated else None,
        )


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class EncoderCalls:
    """Context in which every call of the two encoders is noted: which tower, and the tokens after each layer."""

    def __init__(self, model: RetrievalModel) -> None:
        self.encoders = {"vision": model.visual_encoder, "text": model.text_encoder}
        self.towers: dict[str, list[int]] = {}

    def __enter__(self) -> "EncoderCalls":
        self.handles = [
            encoder.register_forward_hook(lambda _module, _args, output, tower=tower: self._note(tower, output[1]))
            for tower, encoder in self.encoders.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _note(self, tower: str, state: PruningState) -> None:
        before = Counter(name.split("_")[0] for name in self.towers)[tower]
        self.towers[f"{tower}_{before}" if before else tower] = [int(count) for count in state.counts]


class TorchRuntime:
    """The torch model; temperature as a tensor, so that a temperature of zero runs the pruning ops too."""

    name = "torch"

    def __init__(self, model: RetrievalModel) -> None:
        self.model = model

    def run(self, case: RetrievalCase) -> Replay:
        with PruningRecorder() as recorder, EncoderCalls(self.model) as calls:
            outputs = run_case(self.model, case, torch.tensor(case.temperature))
        records = iter(recorder.records)
        towers = {}
        for tower, counts in calls.towers.items():
            layers = [next(records) for _ in counts]
            assert [(r.layer, r.tokens_out) for r in layers] == list(enumerate(counts))
            towers[tower] = [LayerTrace(r.tokens_out, r.keep, r.source_ids) for r in layers]
        assert next(records, None) is None
        return Replay(outputs, towers)


class DenseTorchRuntime:
    """The torch model without any pruning machinery; for cases at temperature zero."""

    name = "torch-dense"

    def __init__(self, model: RetrievalModel) -> None:
        self.model = model

    def run(self, case: RetrievalCase) -> Replay:
        with EncoderCalls(self.model) as calls:
            outputs = run_case(self.model, case, 0.0)
        return Replay(
            outputs,
            {tower: [LayerTrace(count, None, None) for count in counts] for tower, counts in calls.towers.items()},
        )


@torch.no_grad()
def run_case(model: RetrievalModel, case: RetrievalCase, temperature: Tensor | float) -> dict[str, Tensor]:
    """The outputs of a case under their recorded names."""
    image, ids, mask = (case.inputs[name] for name in ("image", "input_ids", "attention_mask"))
    if case.evaluation is not None:
        batches, k_test = image.split(case.evaluation.image_batch), case.evaluation.k_test
        return rank(model, batches, ids, mask, k_test=k_test, temperature=temperature)._asdict()
    images = model.encode_image(image, temperature)
    texts = model.encode_text(ids, mask, temperature)
    matches = model.match(case.inputs["itm_input_ids"], mask, images.image_tokens, temperature)
    return {
        "image_embed": images.image_embed,
        "text_embed": texts.text_embed,
        "sim": images.image_embed @ texts.text_embed.mT,
        "itm_logits": matches.itm_logits,
    }


def judge(case: RetrievalCase, replay: Replay) -> Verdict:
    """Hold a replay to the recording: the same encoder calls in the same order, then outputs and every layer."""
    calls, recorded = list(replay.towers), list(case.recorded.towers)
    if calls != recorded:
        return Verdict(float("nan"), [f"encoder calls {' '.join(calls)}, recorded {' '.join(recorded)}"])
    return compare(case, replay)


def check_folder(folder: Path) -> Iterator[tuple[str, str, Verdict]]:
    """(case, runtime, verdict) of every case in a folder of retrieval recordings."""
    model = load_model(folder)
    for case in load_cases(folder):
        runtimes: list[Any] = [TorchRuntime(model)]
        if case.temperature <= 0:
            runtimes.append(DenseTorchRuntime(model))
        for runtime in runtimes:
            yield case.name, runtime.name, judge(case, runtime.run(case))
