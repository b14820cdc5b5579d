"""Checkpoints of every task: recognised by their keys, sizes inferred, loaded whole; what only NLVR can do so far."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import madtp
from madtp.checkpoint.loading import MODELS
from madtp.checkpoint.sizes import infer_sizes, infer_task
from madtp.errors import ConfigError
from madtp.models.config import CONFIGS

BLIP = {
    "image_size": 32,
    "patch_size": 16,
    "vit_dim": 64,
    "vit_depth": 2,
    "vit_heads": 1,
    "vit_mlp": 48,
    "text_hidden": 64,
    "text_layers": 2,
    "text_heads": 1,
    "text_inter": 40,
    "vocab_size": 50,
    "max_position": 12,
    "sd_num": 5,
    "sd_dim": 64,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "bos_token_id": 48,
    "enc_token_id": 49,
}
CLIP = {
    "embed_dim": 24,
    "image_size": 32,
    "patch_size": 16,
    "vision_layers": 2,
    "vision_width": 128,
    "vision_heads": 2,
    "context_length": 12,
    "vocab_size": 50,
    "text_width": 64,
    "text_heads": 1,
    "text_layers": 3,
    "sd_num": 5,
    "sd_dim": 64,
    "sot_token_id": 48,
    "eot_token_id": 49,
}
SIZES = {
    "nlvr": BLIP | {"merge_from": 1},
    "vqa": BLIP,
    "caption": BLIP,
    "retrieval": BLIP | {"embed_dim": 24},
    "clip": CLIP,
}
IDS = ("pad_token_id", "cls_token_id", "sep_token_id", "bos_token_id", "enc_token_id", "sot_token_id", "eot_token_id")
UNUSED = {
    "nlvr": ("text_encoder.embeddings.position_ids",),
    "vqa": ("visual_encoder_m.cls_token", "text_decoder_m.cls.predictions.bias"),
    "caption": ("text_decoder.bert.embeddings.position_ids",),
    "retrieval": ("image_queue", "ptr_queue", "temp", "vision_proj_m.weight"),
    "clip": ("visual_m.proj", "positional_embedding_m", "text_projection_m", "logit_scale", "text_queue"),
}


def save(task: str, folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint as training leaves it, and the tensors of it that are deployed."""
    torch.manual_seed(0)
    state = MODELS[task](CONFIGS[task](**SIZES[task])).state_dict()
    state = {key: torch.randn_like(value) * 0.1 for key, value in state.items()}
    for key in state:  # tied copies
        if key.endswith("predictions.decoder.weight"):
            state[key] = state["text_decoder.bert.embeddings.word_embeddings.weight"]
        elif key.endswith("predictions.decoder.bias"):
            state[key] = state["text_decoder.cls.predictions.bias"]
    unused = {name: torch.zeros(3) for name in UNUSED[task]}
    path = folder / f"{task}.pth"
    torch.save({"model": state | unused, "epoch": 1, "temperature": 0.3}, path)
    return path, state


@pytest.mark.parametrize("task", CONFIGS)
def test_task_and_sizes_are_told_by_the_tensors(task: str, tmp_path: Path) -> None:
    path, state = save(task, tmp_path)
    ids = {name: value for name, value in SIZES[task].items() if name in IDS}
    model = madtp.load(path, ids)
    assert infer_task(state) == task == model.task == model.config.task
    assert isinstance(model, MODELS[task])
    assert infer_sizes(state, task) == {name: size for name, size in SIZES[task].items() if name not in IDS}
    assert asdict(model.config) == asdict(CONFIGS[task](**SIZES[task]))
    assert model.temperature == 0.3
    assert not model.training
    loaded = model.state_dict()
    assert loaded.keys() == state.keys()
    rounded = [key for key in state if not torch.equal(loaded[key], state[key])]
    assert bool(rounded) == (task == "clip")  # whose official loader rounds matrices to float16
    assert all(torch.equal(loaded[key], state[key].half().float()) for key in rounded)


@pytest.mark.parametrize(
    ("task", "files", "layers"),
    [
        ("nlvr", ("out.onnx",), ("vision", "text")),
        ("vqa", ("out.encoder.onnx", "out.decoder.onnx"), ("vision", "text")),
        ("caption", ("out.encoder.onnx", "out.decoder.onnx"), ("vision",)),
        ("retrieval", ("out.image.onnx", "out.text.onnx", "out.match.onnx"), ("vision", "text", "match")),
        ("clip", ("out.image.onnx", "out.text.onnx"), ("vision", "text")),
    ],
)
def test_the_preflight_says_what_an_export_would_write(
    task: str, files: tuple[str, ...], layers: tuple[str, ...], outputs: Any, run_cli: Callable[..., Any]
) -> None:
    path, _ = save(task, outputs.folder.parent)
    config = outputs.folder.parent / "config.json"
    config.write_text(json.dumps({name: value for name, value in SIZES[task].items() if name in IDS}))
    ran = run_cli("check", "--ckpt", path, "--engine", outputs / "out.onnx", "--config", config)
    assert ran.status == 0, ran
    shown = "".join(line.strip(" \u2502").split("\u2502")[-1].strip() for line in ran.out.splitlines())
    assert all(file in shown for file in files)
    depth = SIZES[task].get("vit_depth", SIZES[task].get("vision_layers"))
    assert all(name in ran.out for name in layers)
    assert f"{depth} vision" in ran.out
    outputs.untouched()


@pytest.mark.parametrize("task", ["nlvr", "vqa", "retrieval"])
def test_encoders_that_share_a_dictionary_share_a_width(task: str) -> None:
    with pytest.raises(ConfigError, match="text_hidden 128"):
        CONFIGS[task](**SIZES[task] | {"text_hidden": 128})
    with pytest.raises(ConfigError, match="vit_dim 64"):
        CONFIGS[task](**SIZES[task] | {"sd_dim": 128})


def test_captioning_has_a_decoder_of_any_width() -> None:
    CONFIGS["caption"](**SIZES["caption"] | {"text_hidden": 128})
    with pytest.raises(ConfigError, match="sd_dim 128"):
        CONFIGS["caption"](**SIZES["caption"] | {"sd_dim": 128})


@pytest.mark.parametrize("task", CONFIGS)
def test_fields_of_another_task_are_refused(task: str, tmp_path: Path) -> None:
    path, _ = save(task, tmp_path)
    foreign = {"vit_dim": 64} if task == "clip" else {"vision_width": 64}
    with pytest.raises(ConfigError, match=f"a {task} model has no {next(iter(foreign))}"):
        madtp.load(path, foreign)
