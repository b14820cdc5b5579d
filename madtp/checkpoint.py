"""Reading checkpoints: sizes and task inferred from the tensors, every disagreement named."""

import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from madtp.config import HEAD_SIZE, NlvrConfig, check_fields, read_config
from madtp.errors import CheckpointError, ConfigError
from madtp.nlvr import NlvrModel

_logger = logging.getLogger(__name__)

# Tensors of official checkpoints that training needs and inference does not.
NOT_DEPLOYED = re.compile(
    r"^(visual_encoder_m|text_encoder_m|text_decoder_m|vision_proj_m|text_proj_m|visual_m|transformer_m)\."
    r"|^(image_queue|text_queue|idx_queue|ptr_queue|temp|logit_scale)$"
    r"|\.position_ids$"
)
LISTED = 8  # keys named in an error before it says "and N more"
MAX_TEMPERATURE = torch.finfo(torch.float32).max
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# Size -> the tensor and its dimension that tell it.
SIZE_SOURCES = {
    "sd_num": ("space_dict", 0),
    "sd_dim": ("space_dict", 1),
    "vit_dim": ("visual_encoder.patch_embed.proj.weight", 0),
    "patch_size": ("visual_encoder.patch_embed.proj.weight", 2),
    "vit_mlp": ("visual_encoder.blocks.0.mlp.fc1.weight", 0),
    "vocab_size": ("text_encoder.embeddings.word_embeddings.weight", 0),
    "text_hidden": ("text_encoder.embeddings.word_embeddings.weight", 1),
    "max_position": ("text_encoder.embeddings.position_embeddings.weight", 0),
    "text_inter": ("text_encoder.encoder.layer.0.intermediate.dense.weight", 0),
}
POSITIONS = "visual_encoder.pos_embed"  # with the patch size it tells the image size


def load(path: Path | str, config: Mapping[str, Any] | Path | str | None = None) -> NlvrModel:
    """Load an official MADTP checkpoint (`{"model": state_dict, "epoch": int, "temperature": float}`).

    Args:
        path: the checkpoint; read with `weights_only=True`, memory-mapped.
        config: fields, or the path of a JSON file of them, that win over the checkpoint's own `config` entry, which
            wins over what the tensors say. See `madtp.config.NlvrConfig`.

    Returns:
        The model in eval mode with `.task`, `.config` and `.temperature`.

    Raises:
        CheckpointError: unreadable file, other architecture, keys missing, unexpected or of the wrong shape, values
            that are not finite.
        ConfigError: unreadable or contradictory configuration.
    """
    overrides = (
        read_config(config)
        if isinstance(config, str | Path)
        else check_fields({} if config is None else config, "config")
    )
    content = read_checkpoint(path)
    state = content["model"]
    recorded = content.get("config")
    own = check_fields({} if recorded is None else recorded, f"the config entry of '{path}'")
    model_config = build_config(state, own | overrides, path)
    with torch.device("meta"):
        model = NlvrModel(model_config, _temperature(content, path))
    load_state(model, state, path)
    return model.eval()


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """The content of a checkpoint file, tensors memory-mapped where the format allows it."""
    path = Path(path)
    try:
        if not path.is_file():
            why = "The file does not exist."
            if path.exists():
                why = "There is a folder of that name." if path.is_dir() else "It is not a regular file."
            raise CheckpointError(f"no checkpoint at '{path}'", why, "Give --ckpt the path of a .pt or .pth file.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks about files that the errors below are about
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise CheckpointError(
            f"cannot read the checkpoint '{path}'", f"{error.strerror or error}.", "Check the path and its permissions."
        ) from error
    except _DAMAGED as error:
        raise _unreadable(path, error) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        found = f"a {type(content).__name__}"
        if isinstance(content, dict):
            found = f"a dictionary with {_listing(sorted(str(key) for key in content))}"
        raise CheckpointError(
            f"the checkpoint '{path}' has no 'model' entry",
            f"It holds {found}; official MADTP checkpoints hold 'model', 'epoch' and 'temperature'.",
            "Save it as {'model': model.state_dict(), 'epoch': ..., 'temperature': ...}.",
        )
    if not all(isinstance(key, str) for key in content["model"]):
        raise CheckpointError(
            f"the 'model' entry of '{path}' has keys that are no strings",
            "A state dict maps names to tensors.",
            "Save it as {'model': model.state_dict(), 'epoch': ..., 'temperature': ...}.",
        )
    return content


# What torch.load raises on damaged files, besides OSError.
_DAMAGED = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, AssertionError),
    *(KeyError, TypeError, AttributeError, IndexError, OverflowError),
)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """The error for a file that torch's reader of tensors, which runs no code, has refused."""
    with path.open("rb") as file:
        start = file.read(2)
    named = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if named or start in (b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        what = f"it refers to {named[1]}" if named else "it is a plain Python pickle"
        return CheckpointError(
            f"the checkpoint '{path}' holds more than tensors, numbers and strings",
            f"Loading it could run code stored in it: {what}. Nothing of it was run.",
            "Save it again as {'model': model.state_dict(), 'epoch': ..., 'temperature': ...}.",
        )
    said = str(error).strip().split(". ")[0] if type(error) is RuntimeError else ""
    why = f"The file is truncated, or was not written by torch.save{f' ({said})' if said else ''}."
    return CheckpointError(
        f"cannot read the checkpoint '{path}'",
        why if start else "The file is empty.",
        "Copy or download it again and compare its size with the original.",
    )


def _temperature(content: Mapping[str, Any], path: Path | str) -> float:
    if "temperature" not in content:
        _logger.warning("'%s' records no temperature: its default is 0, the dense model", path)
    value = content.get("temperature", 0.0)
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_TEMPERATURE:
        raise CheckpointError(
            f"the temperature in '{path}' is {value!r:.40}", "It has to be a finite number, zero (dense) or more."
        )
    return float(value)


def infer_task(state: Mapping[str, Any]) -> str:
    """The task that a state dict was trained for, by the keys that only that task has; "" where none fits."""
    if any(".crossattention.self0." in key for key in state):
        return "nlvr"
    if "visual.conv1.weight" in state:
        return "clip"
    if "itm_head.weight" in state:
        return "retrieval"
    if any(key.startswith("text_decoder.") for key in state):
        return "vqa" if any(key.startswith("text_encoder.") for key in state) else "caption"
    return ""


def infer_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Sizes of an NLVR model as far as its tensors tell; a size whose tensor is missing is left out."""
    sizes: dict[str, int] = {}
    for name, (key, dim) in SIZE_SOURCES.items():
        tensor = state.get(key)
        if isinstance(tensor, Tensor) and dim < tensor.dim():
            sizes[name] = tensor.shape[dim]
    sizes["vit_depth"] = _layers(state, r"visual_encoder\.blocks\.(\d{1,3})\.")
    sizes["text_layers"] = _layers(state, r"text_encoder\.encoder\.layer\.(\d{1,3})\.")
    merging = [
        int(m[1]) for key in state if (m := re.search(r"layer\.(\d{1,3})\.crossattention\.output\.merge_layer", key))
    ]
    sizes["merge_from"] = min(merging, default=sizes["text_layers"])
    position = state.get(POSITIONS)
    if isinstance(position, Tensor) and position.dim() == 3 and "patch_size" in sizes:
        sizes["image_size"] = round(max(position.shape[1] - 1, 0) ** 0.5) * sizes["patch_size"]
    for width, heads in (("vit_dim", "vit_heads"), ("text_hidden", "text_heads")):
        if sizes.get(width, 1) % HEAD_SIZE == 0:
            sizes[heads] = sizes[width] // HEAD_SIZE
    return {name: size for name, size in sizes.items() if size or name == "merge_from"}


def _layers(state: Mapping[str, Any], pattern: str) -> int:
    return max((int(match[1]) + 1 for key in state if (match := re.match(pattern, key))), default=0)


def build_config(state: Mapping[str, Tensor], given: Mapping[str, Any], path: Path | str) -> NlvrConfig:
    """The configuration of `state`: inferred sizes, overridden by the fields in `given`."""
    task = given.get("task") or infer_task(state)
    if task != "nlvr" or infer_task(state) not in ("nlvr", ""):
        known = infer_task(state) or "no known"
        raise CheckpointError(
            f"'{path}' is {'a' if infer_task(state) else 'of'} {known} {'checkpoint' if infer_task(state) else 'task'}"
            + (f", but the configuration says '{task}'" if task and task != infer_task(state) else ""),
            f"This version deploys nlvr; the first keys are {_listing(sorted(map(str, state))[:LISTED])}.",
            "Give the checkpoint of a BLIP-NLVR model that was trained with MADTP.",
        )
    values = {**infer_sizes(state), **given}
    required = [field.name for field in fields(NlvrConfig) if field.default is field.default_factory]  # neither is set
    missing = [name for name in required if name not in values]
    heads = [name for name in missing if name.endswith("heads")]
    if missing != heads:
        sources = {name: key for name, (key, _) in SIZE_SOURCES.items()} | {
            "vit_depth": "visual_encoder.blocks.*",
            "text_layers": "text_encoder.encoder.layer.*",
            "image_size": POSITIONS,
        }
        raise CheckpointError(
            f"the sizes {', '.join(missing)} of '{path}' are unknown",
            "These tensors, which tell them, are missing or empty: "
            + ", ".join(sorted({sources[name] for name in missing if name not in heads}))
            + ".",
            "Check that the checkpoint is complete, and of a MADTP model.",
        )
    if missing:
        raise ConfigError(
            f"the sizes {', '.join(missing)} of '{path}' are unknown",
            f"The width is no multiple of the usual head size {HEAD_SIZE}.",
            f"State them in --config, e.g. {{{', '.join(f'{chr(34)}{name}{chr(34)}: 12' for name in missing)}}}.",
        )
    return NlvrConfig(**values)


def load_state(model: torch.nn.Module, state: Mapping[str, Any], path: Path | str) -> None:
    """Put the tensors of `state` into `model` without copying them.

    Raises:
        CheckpointError: naming every key that is missing, unexpected, no plain tensor of floating-point numbers, of
            the wrong shape, or not finite.
    """
    deployed = {key: value for key, value in state.items() if not NOT_DEPLOYED.search(key)}
    expected = model.state_dict()
    missing = sorted(expected.keys() - deployed.keys())
    unexpected = sorted(deployed.keys() - expected.keys())
    wanted = {key: value for key, value in sorted(deployed.items()) if key in expected}
    mistyped = [f"{key} is {_kind(value)}" for key, value in wanted.items() if not _is_weight(value)]
    misshaped = [
        f"{key} is {list(value.shape)} and should be {list(expected[key].shape)}"
        for key, value in wanted.items()
        if isinstance(value, Tensor) and value.shape != expected[key].shape
    ]
    problems = [
        f"{len(keys)} {label}: {', '.join(keys)}"
        for label, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("no floating-point weights", mistyped),
            ("of the wrong shape", misshaped),
        )
        if keys
    ]
    if problems:
        raise CheckpointError(
            f"the keys of '{path}' do not fit a {getattr(model, 'task', '')} model",
            "\n".join(problems),
            "Check that this is a MADTP checkpoint of this task; sizes that tensors do not tell go into --config.",
        )
    weights = {key: value.to(torch.float32) for key, value in wanted.items()}
    broken = [key for key, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise CheckpointError(
            f"the checkpoint '{path}' has NaN or infinite weights",
            f"In {_listing(broken)}.",
            "The training run diverged or the file is damaged; take an earlier checkpoint.",
        )
    model.load_state_dict(weights, assign=True)


def _is_weight(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and value.dtype in FLOATS
    )


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}"
    parts = (value.device.type, value.layout, value.dtype)
    return " ".join(str(part).removeprefix("torch.") for part in parts if part not in ("cpu", torch.strided))


def _listing(keys: list[str]) -> str:
    shown = ", ".join(keys[:LISTED])
    return f"{shown} and {len(keys) - LISTED} more" if len(keys) > LISTED else shown
