"""Replay recorded cases of CLIP with MADTP: `check_folder`, to which `tests.golden` hands folders of task clip.

Stricter than the other tasks: the storage order of kept tokens is compared too, because causal attention and the
read-out position depend on it.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from madtp.checkpoint import load_state
from madtp.clip import ClipModel, normalize, round_like_official_loader
from madtp.config import ClipConfig
from madtp.errors import InputError
from madtp.recorder import PruningRecorder
from tests.generate import checksum_errors, generated_images, generated_state
from tests.golden import (
    FLOAT64_FACTOR,
    TOLERANCE,
    GoldenCase,
    LayerTrace,
    Replay,
    Verdict,
    _recorded_layers,
    compare,
)


def load_model(folder: Path) -> ClipModel:
    """The model of a golden folder, its weights loaded or generated, rounded as the official loader does, checked."""
    values = json.loads((folder / "config.json").read_text())
    config = ClipConfig(**{name: value for name, value in values.items() if name in ClipConfig.__dataclass_fields__})
    with torch.device("meta"):
        model = ClipModel(config)
    stored = folder / "weights.safetensors"
    state = load_file(stored) if stored.is_file() else generated_state(model, values["weight_seed"])
    check = folder / "weight_check.json"
    if check.is_file() and (wrong := checksum_errors(state, json.loads(check.read_text()))):
        raise InputError(f"generated weights of {folder} differ from the recorded checksums", ", ".join(wrong))
    load_state(model, round_like_official_loader(state), folder)
    return model.eval()


def load_cases(folder: Path, image_size: int) -> Iterator[tuple[GoldenCase, int]]:
    """The recorded cases of a folder, each with the number of images a call (0: all in one).

    Images that are not stored are generated, `image_size` pixels wide.
    """
    for entry in json.loads((folder / "cases.json").read_text()):
        tensors = load_file(folder / entry["file"])
        inputs = {name.removeprefix("input/"): t for name, t in tensors.items() if name.startswith("input/")}
        if "image" not in inputs:
            inputs["image"] = generated_images(inputs["text"].shape[0], image_size, entry["image_seed"])
        if wrong := checksum_errors(inputs, entry.get("image_check", {})):
            raise InputError(f"generated images of {entry['name']} differ from the recorded checksum", ", ".join(wrong))
        outputs = {name.removeprefix("output/"): t for name, t in tensors.items() if name.startswith("output/")}
        recorded = Replay(outputs, {call["tower"]: _recorded_layers(tensors, call) for call in entry["trace"]})
        difference = entry.get("fp64_max_abs_diff", {})
        tolerances = {name: max(TOLERANCE, FLOAT64_FACTOR * difference.get(name, 0.0)) for name in outputs}
        yield GoldenCase(entry["name"], inputs, entry["temperature"], recorded, tolerances), entry.get("image_batch", 0)


def run(model: ClipModel, case: GoldenCase, image_batch: int, *, dense: bool) -> Replay:
    """Outputs and towers of a case, named as the recording names them; captions are one batch.

    Args:
        image_batch: images a call; 0 is all in one.
        dense: run without any pruning machinery instead of with the temperature as a tensor, which runs the pruning
            ops even at zero.
    """
    towers: dict[str, list[LayerTrace]] = {}
    temperature = 0.0 if dense else torch.tensor(case.temperature)
    features = []
    with torch.no_grad():
        for index, images in enumerate(case.inputs["image"].split(image_batch or len(case.inputs["image"]))):
            with PruningRecorder() as recorder:
                output = model.encode_image(images, temperature)
            features.append(output.image_feature)
            towers[f"vision_{index}" if index else "vision"] = _layers(recorder, output.vision_token_counts)
        with PruningRecorder() as recorder:
            text_feature, counts, position = model.encode_text(case.inputs["text"], temperature)
        towers["text"] = _layers(recorder, counts)
    image_feature = torch.cat(features)
    image_embed, text_embed = normalize(image_feature), normalize(text_feature)
    sim = image_embed @ text_embed.mT
    outputs = {
        "image_feature": image_feature,
        "text_feature": text_feature,
        "image_embed": image_embed,
        "text_embed": text_embed,
        "sim": sim,
        "text_picked_position": position,
        "score_i2t": sim,
        "score_t2i": sim.mT,
    }
    return Replay(outputs, towers)


def _layers(recorder: PruningRecorder, counts: Tensor) -> list[LayerTrace]:
    """What the pruning ops did, or where none ran, what the counts [B, layers] say."""
    if recorder.records:
        return [LayerTrace(r.tokens_out, r.keep, r.source_ids) for r in recorder.records]
    return [LayerTrace(int(count), None, None) for count in counts[0]]


def compare_ordered(case: GoldenCase, replay: Replay) -> Verdict:
    """`compare`, and the kept tokens in their recorded order."""
    verdict = compare(case, replay)
    for tower, recorded_layers in case.recorded.towers.items():
        for index, (layer, recorded) in enumerate(zip(replay.towers[tower], recorded_layers, strict=False)):
            ids, expected = layer.source_ids, recorded.source_ids
            if ids is not None and expected is not None and not torch.equal(ids.long(), expected.long()):
                verdict.mismatches.append(f"{tower} layer {index}: tokens are stored in another order")
    return verdict


def check_folder(folder: Path) -> Iterator[tuple[str, str, Verdict]]:
    """(case, runtime, verdict) of every case in a folder."""
    model = load_model(folder)
    for case, image_batch in load_cases(folder, model.config.image_size):
        yield case.name, "torch", compare_ordered(case, run(model, case, image_batch, dense=False))
        if case.temperature <= 0:
            yield case.name, "torch-dense", compare_ordered(case, run(model, case, image_batch, dense=True))
