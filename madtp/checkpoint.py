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

from madtp.caption import CaptionModel
from madtp.clip import ClipModel, round_like_official_loader
from madtp.config import CONFIGS, HEAD_SIZE, BlipConfig, ClipConfig, check_fields, read_config
from madtp.errors import CheckpointError, ConfigError
from madtp.nlvr import NlvrModel
from madtp.retrieval import RetrievalModel
from madtp.sizes import SOURCES, infer_sizes, infer_task
from madtp.tf32 import forbid_tf32
from madtp.vqa import VqaModel

Config = BlipConfig | ClipConfig
Model = NlvrModel | VqaModel | CaptionModel | RetrievalModel | ClipModel
MODELS: dict[str, Any] = {model.task: model for model in (NlvrModel, VqaModel, CaptionModel, RetrievalModel, ClipModel)}

_logger = logging.getLogger(__name__)

# Tensors of official checkpoints that training needs and inference does not.
NOT_DEPLOYED = re.compile(
    r"^(visual_encoder|text_encoder|text_decoder|vision_proj|text_proj)_m\."
    r"|^(visual|transformer|token_embedding|positional_embedding|ln_final|text_projection)_m(\.|$)"
    r"|^(image_queue|text_queue|idx_queue|ptr_queue|temp|logit_scale)$"
    r"|\.position_ids$"
)
LISTED = 8  # keys named in an error before it says "and N more"
MAX_TEMPERATURE = torch.finfo(torch.float32).max
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def load(path: Path | str, config: Mapping[str, Any] | Path | str | None = None) -> Model:
    """Load an official MADTP checkpoint (`{"model": state_dict, "epoch": int, "temperature": float}`).

    Args:
        path: the checkpoint; read with `weights_only=True`, memory-mapped.
        config: fields, or the path of a JSON file of them, that win over the checkpoint's own `config` entry, which
            wins over what the tensors say. See `madtp.config.NlvrConfig`.

    Returns:
        The model in eval mode with `.task`, `.config` and `.temperature`. TF32 is off from then on in this process.

    Raises:
        CheckpointError: unreadable file, other architecture, keys missing, unexpected or of the wrong shape, values
            that are not finite.
        ConfigError: unreadable or contradictory configuration.
    """
    forbid_tf32()
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
        model: Model = MODELS[model_config.task](model_config, _temperature(content, path))
    load_state(model, round_like_official_loader(state) if model_config.task == "clip" else state, path)
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


def build_config(state: Mapping[str, Tensor], given: Mapping[str, Any], path: Path | str) -> Config:
    """The configuration of `state`: inferred sizes, overridden by the fields in `given`."""
    found = infer_task(state)
    task = given.get("task") or found
    if task not in CONFIGS or found not in (task, ""):
        what = f"a {found} checkpoint" if found else "of no known task"
        raise CheckpointError(
            f"'{path}' is {what}" + (f", but the configuration says '{task}'" if task and task != found else ""),
            f"The tasks are {', '.join(CONFIGS)}; the first keys are {_listing(sorted(map(str, state))[:LISTED])}.",
            "Give the checkpoint of a model of one of these tasks that was trained with MADTP.",
        )
    values = {**infer_sizes(state, task), **given}
    known = fields(CONFIGS[task])
    required = [field.name for field in known if field.default is field.default_factory]  # neither is set
    missing = [name for name in required if name not in values]
    heads = [name for name in missing if name.endswith("heads")]
    if missing != heads:
        tensors = sorted({SOURCES[task].tensor_of(name) for name in missing if name not in heads})
        raise CheckpointError(
            f"the sizes {', '.join(missing)} of '{path}' are unknown",
            f"It is taken for a {task} checkpoint, and these tensors, which tell them, are missing or empty: "
            f"{', '.join(tensors)}.",
            "Check that the checkpoint is complete, and of a MADTP model.",
        )
    if missing:
        raise ConfigError(
            f"the sizes {', '.join(missing)} of '{path}' are unknown",
            f"The width is no multiple of the usual head size {HEAD_SIZE}.",
            f"State them in --config, e.g. {{{', '.join(f'{chr(34)}{name}{chr(34)}: 12' for name in missing)}}}.",
        )
    foreign = sorted(values.keys() - {field.name for field in known})
    if foreign:
        raise ConfigError(
            f"a {task} model has no {', '.join(foreign)}",
            "The configuration is of another task.",
            "Remove these fields from --config.",
        )
    return CONFIGS[task](**values)


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
