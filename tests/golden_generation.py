"""Replay recorded cases of VQA and captioning: encoders, answer ranking, and generation step by step."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from madtp.caption import CaptionModel
from madtp.checkpoint import load_state
from madtp.config import CaptionConfig, VqaConfig
from madtp.decoder import DecoderSession
from madtp.generation import Step, beam_search, greedy_search
from madtp.recorder import PruningRecorder
from madtp.vqa import VqaModel
from tests.golden import FLOAT64_FACTOR, TOLERANCE, LayerTrace, Replay, Verdict, _layer_mismatches, _recorded_layers

CAPTION_BEAMS = 3
TASKS: dict[str, tuple[type[VqaConfig | CaptionConfig], type[VqaModel | CaptionModel]]] = {
    "vqa": (VqaConfig, VqaModel),
    "caption": (CaptionConfig, CaptionModel),
}


@dataclass(frozen=True)
class Case:
    """One recorded run: what `cases.json` says of it, the inputs, outputs and layers of every encoder call."""

    entry: Mapping[str, Any]
    inputs: dict[str, Tensor]
    recorded: Replay

    @property
    def name(self) -> str:
        return self.entry["name"]

    @property
    def temperature(self) -> float:
        return self.entry["temperature"]

    def tolerance(self, output: str) -> float:
        return max(TOLERANCE, FLOAT64_FACTOR * self.entry.get("fp64_max_abs_diff", {}).get(output, 0.0))


@dataclass
class RecordedStep:
    """A step that notes the ids of every row and the logits of every call."""

    step: Step
    ids: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def __call__(self, input_ids: Tensor, rows: Tensor | None) -> Tensor:
        if self.ids:
            before = self.ids[-1] if rows is None else self.ids[-1][rows]
            self.ids.append(torch.cat([before, input_ids], dim=1))
        else:
            self.ids.append(input_ids)
        self.logits.append(self.step(input_ids, rows))
        return self.logits[-1]

    def outputs(self, prefix: str) -> dict[str, Tensor]:
        return {
            f"{prefix}/step{number:02d}/{name}": tensor
            for name, tensors in (("input_ids", self.ids), ("logits", self.logits))
            for number, tensor in enumerate(tensors)
        }


def load_model(folder: Path) -> VqaModel | CaptionModel:
    """The model of a golden folder with its stored weights."""
    values = json.loads((folder / "config.json").read_text())
    config_class, model_class = TASKS[values["task"]]
    config = config_class(**{name: v for name, v in values.items() if name in config_class.__dataclass_fields__})
    with torch.device("meta"):
        model = model_class(config)
    load_state(model, load_file(folder / "weights.safetensors"), folder)
    return model.eval()


def load_cases(folder: Path) -> Iterator[Case]:
    """The recorded cases of a folder."""
    for entry in json.loads((folder / "cases.json").read_text()):
        tensors = load_file(folder / entry["file"])
        inputs, outputs = (
            {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            for prefix in ("input/", "output/")
        )
        yield Case(
            entry, inputs, Replay(outputs, {call["tower"]: _recorded_layers(tensors, call) for call in entry["trace"]})
        )


class TorchRuntime:
    """The torch model, temperature as a tensor, so that a temperature of zero runs the pruning ops too; or `dense`."""

    def __init__(self, model: VqaModel | CaptionModel, dense: bool = False) -> None:
        self.model = model
        self.dense = dense
        self.name = "torch-dense" if dense else "torch"

    @torch.no_grad()
    def run(self, case: Case) -> Replay:
        if isinstance(self.model, CaptionModel):
            return self._caption(self.model, case)
        return self._evaluate(self.model, case) if case.entry.get("kind") == "evaluate" else self._vqa(self.model, case)

    def _encode(self, case: Case, inputs: Mapping[str, Tensor], suffix: str = "") -> tuple[Tensor, dict[str, Any]]:
        """The states that the decoder looks at, and the layers of the encoder calls."""
        temperature = case.temperature if self.dense else torch.tensor(case.temperature)
        with PruningRecorder() as recorder:
            output = self.model(**inputs, temperature=temperature)
        if self.dense:
            assert not recorder.records
            layers = [LayerTrace(int(n), None, None) for counts in output[1:] for n in counts[0]]
        else:
            layers = [LayerTrace(record.tokens_out, record.keep, record.source_ids) for record in recorder.records]
        depth = self.model.config.vit_depth
        towers = {f"vision{suffix}": layers[:depth], f"text{suffix}": layers[depth:]}
        return output[0], {name: tower for name, tower in towers.items() if tower}

    def _vqa(self, model: VqaModel, case: Case) -> Replay:
        inputs = case.inputs
        states, towers = self._encode(case, {name: inputs[name] for name in ("image", "input_ids", "attention_mask")})
        outputs = {
            "question_states": states,
            "start_logits": model.start_logits(states),
            "generate_ids": model.generate(states),
            **model.rank(states, inputs["answer_ids"], inputs["answer_mask"], case.entry["k_test"])._asdict(),
        }
        return Replay(outputs, towers)

    def _evaluate(self, model: VqaModel, case: Case) -> Replay:
        chosen: list[Tensor] = []
        towers: dict[str, list[LayerTrace]] = {}
        for number, images in enumerate(case.inputs["image"].split(case.entry["image_batch"])):
            words = {name: case.inputs[f"batch{number}/{name}"] for name in ("input_ids", "attention_mask")}
            states, layers = self._encode(case, {"image": images, **words}, f"_{number}" if number else "")
            towers |= layers
            answers = (case.inputs["answer_ids"], case.inputs["answer_mask"])
            chosen.append(model.rank(states, *answers, case.entry["k_test"]).answer_index)
        return Replay({"answer_index": torch.cat(chosen)}, towers)

    def _caption(self, model: CaptionModel, case: Case) -> Replay:
        states, towers = self._encode(case, {"image": case.inputs["image"]})
        prompt = case.inputs["prompt_ids"]
        lengths = {name: case.entry[name] for name in ("max_length", "min_length")}
        outputs: dict[str, Tensor] = {}
        for search, beams in (("beam3", CAPTION_BEAMS), ("greedy", 1)):
            step = RecordedStep(DecoderSession(model.text_decoder, states, beams))
            limits = model.limits(**lengths)
            ids = beam_search(step, prompt, limits, beams) if beams > 1 else greedy_search(step, prompt, limits)
            assert torch.equal(ids, model.generate(states, prompt, beams=beams, **lengths))
            outputs |= {f"{search}/ids": ids, **step.outputs(search)}
        return Replay(outputs, towers)


def compare(case: Case, replay: Replay) -> Verdict:
    """Hold a replay to the recording: float outputs within tolerance; integer outputs and the selection equal."""
    verdict = Verdict()
    recorded = case.recorded
    for name in sorted(recorded.outputs.keys() | replay.outputs.keys()):
        expected, actual = recorded.outputs.get(name), replay.outputs.get(name)
        if expected is None or actual is None:
            verdict.mismatches.append(f"{name} is {'not recorded' if expected is None else 'missing'}")
        elif actual.shape != expected.shape:
            verdict.mismatches.append(f"{name} is {list(actual.shape)}, recorded {list(expected.shape)}")
        elif not expected.is_floating_point():
            if not torch.equal(actual, expected):
                verdict.mismatches.append(f"{name} differs")
        else:
            if name == "question_states":
                expected = _by_source(expected, recorded.towers["text"][-1])
                actual = _by_source(actual, replay.towers["text"][-1])
            difference = (actual.double() - expected.double()).abs().max().item()
            verdict.worst = max(verdict.worst, difference)
            if not difference <= case.tolerance(name):
                verdict.mismatches.append(f"{name} off by {difference:.2e} (allowed {case.tolerance(name):.0e})")
    for tower in sorted(recorded.towers.keys() | replay.towers.keys()):
        layers, expected_layers = replay.towers.get(tower, []), recorded.towers.get(tower, [])
        if len(layers) != len(expected_layers):
            verdict.mismatches.append(f"{tower} has {len(layers)} layers, recorded {len(expected_layers)}")
        for index, (layer, expected_layer) in enumerate(zip(layers, expected_layers, strict=False)):
            verdict.mismatches += [
                f"{tower} layer {index}: {text}" for text in _layer_mismatches(layer, expected_layer)
            ]
    return verdict


def _by_source(states: Tensor, layer: LayerTrace) -> Tensor:
    """States [B, S, C] in the order of their source ids: the recorded storage order is another than this project's."""
    if layer.source_ids is None:
        return states
    order = layer.source_ids.long().argsort(dim=1)
    return states.gather(1, order[..., None].expand_as(states))


def check_folder(folder: Path) -> Iterator[tuple[str, str, Verdict]]:
    """(case, runtime, verdict) of every case in a folder of VQA or captioning."""
    model = load_model(folder)
    for case in load_cases(folder):
        runtimes = [TorchRuntime(model)] + ([TorchRuntime(model, dense=True)] if case.temperature <= 0 else [])
        for runtime in runtimes:
            yield case.name, runtime.name, compare(case, runtime.run(case))
