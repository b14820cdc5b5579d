"""Reading checkpoints: sizes and task inferred from the tensors, every disagreement named."""

import logging
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from madtp.checkpoint.archive import check_claims, read_archive
from madtp.checkpoint.entries import find_entries
from madtp.checkpoint.foreign import recognise
from madtp.checkpoint.sizes import SOURCES, infer_sizes, infer_task, is_plain
from madtp.errors import LISTED, CheckpointError, ConfigError, listing, one_line, shorten
from madtp.models.caption import CaptionModel
from madtp.models.clip import ClipModel, round_like_official_loader
from madtp.models.config import (
    CONFIGS,
    HEAD_SIZE,
    MAX_TEMPERATURE,
    BlipConfig,
    ClipConfig,
    check_fields,
    read_config,
    recorded_fields,
)
from madtp.models.nlvr import NlvrModel
from madtp.models.retrieval import RetrievalModel
from madtp.models.vqa import VqaModel
from madtp.ops.tf32 import forbid_tf32

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
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def load(path: Path | str, config: Mapping[str, Any] | Path | str | None = None) -> Model:
    """Load an official MADTP checkpoint (`{"model": state_dict, "epoch": int, "temperature": float}`).

    Args:
        path: the checkpoint; read with `weights_only=True`, memory-mapped.
        config: fields, or the path of a JSON file of them, that win over the checkpoint's own `config` entry, which
            wins over what the tensors say. See `madtp.models.config.NlvrConfig`.

    Returns:
        The model in eval mode with `.task`, `.config` and `.temperature`. TF32 is off from then on in this process.

    Raises:
        CheckpointError: unreadable file, other architecture, keys missing, unexpected or of the wrong shape, values
            that are not finite.
        ConfigError: unreadable or contradictory configuration.
    """
    loaded = read_model(path, config)
    for note in loaded.notes:
        _logger.warning("'%s': %s", one_line(str(path)), one_line(note))
    return loaded.model


class Loaded(NamedTuple):
    """A model, the epoch that its checkpoint records, and what was read in another way than usual, a sentence each."""

    model: Model
    epoch: int | None
    notes: tuple[str, ...]


def read_model(path: Path | str, config: Mapping[str, Any] | Path | str | None = None) -> Loaded:
    """What `load` does, with the notes returned instead of logged; for callers that show or have shown them."""
    forbid_tf32()
    overrides = (
        read_config(config)
        if isinstance(config, str | Path)
        else check_fields({} if config is None else config, "config")
    )
    content, size = read_archive(Path(path))
    entries = find_entries(content, path)
    state, notes = entries.state, list(entries.notes)
    check_claims(state, size, path)
    recorded, note = recorded_fields(
        entries.others.get("config"), f"the config entry of '{path}'", infer_task(state), overridden=config is not None
    )
    notes += [note.replace(f" of '{path}'", "")] if note else []
    model_config = build_config(state, recorded | overrides, path)
    if "temperature" not in entries.others:
        notes.append("it records no temperature: the default is 0, the dense model")
    with torch.device("meta"):
        model: Model = MODELS[model_config.task](model_config, _temperature(entries.others, path))
    load_state(model, round_like_official_loader(state) if model_config.task == "clip" else state, path)
    epoch = entries.others.get("epoch")
    return Loaded(model.eval(), epoch if isinstance(epoch, int) else None, tuple(notes))


def _temperature(content: Mapping[Any, Any], path: Path | str) -> float:
    value = content.get("temperature", 0.0)
    if is_plain(value) and value.device.type == "cpu" and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_TEMPERATURE:
        raise CheckpointError(
            f"the temperature in '{path}' is {value!r:.40}",
            "It has to be a finite number, zero (dense) or more.",
            "Save the checkpoint again with the temperature that it was trained at.",
        )
    return float(value)


def build_config(state: Mapping[str, Tensor], given: Mapping[str, Any], path: Path | str) -> Config:
    """The configuration of `state`: inferred sizes, overridden by the fields in `given`."""
    found = infer_task(state)
    task = given.get("task") or found
    if task not in CONFIGS or found not in (task, ""):
        what = f"a {found} checkpoint" if found else "of no known task"
        known = recognise(state) if not found else None
        fix = known[1] if known else "Give the checkpoint of a model of one of these tasks that was trained with MADTP."
        if found:
            fix = f'Give the {task} model\'s checkpoint, or say "task": "{found}" in --config, which wins.'
        keys = f"the first keys are {listing(sorted(state))}" if state else "its 'model' entry is empty"
        raise CheckpointError(
            f"'{path}' is {what}" + (f", but the configuration says '{task}'" if task and task != found else ""),
            f"{known[0] if known else ''} The tasks are {', '.join(CONFIGS)}; {keys}.".lstrip(),
            fix,
        )
    inferred = infer_sizes(state, task)
    values = {**inferred, **given}
    known_fields = fields(CONFIGS[task])
    required = [field.name for field in known_fields if field.default is field.default_factory]  # neither is set
    missing = [name for name in required if name not in values]
    heads = [name for name in missing if name.endswith("heads")]
    if missing != heads:
        sign = recognise(state)
        raise CheckpointError(
            f"the sizes {', '.join(missing)} of '{path}' are unknown",
            f"{sign[0] if sign else ''} It is taken for a {task} checkpoint, and these tensors, which tell them, are "
            f"missing or empty: {listing(_silent_tensors(state, task, missing))}.".lstrip(),
            sign[1] if sign else "Save the state dict of the whole model again; a part of it is not enough.",
        )
    if missing:
        raise ConfigError(
            f"the sizes {', '.join(missing)} of '{path}' are unknown",
            f"The width is not a multiple of the usual head size {HEAD_SIZE}.",
            f"State them in --config, e.g. {{{', '.join(f'{chr(34)}{name}{chr(34)}: 12' for name in missing)}}}.",
        )
    foreign = sorted(values.keys() - {field.name for field in known_fields})
    if foreign:
        raise ConfigError(
            f"a {task} model has no {', '.join(foreign)}",
            "The configuration is of another task.",
            "Remove these fields from --config.",
        )
    try:
        return CONFIGS[task](**values)
    except ConfigError as error:
        if given.keys() - inferred.keys() - {"task"} or any(
            inferred.get(name, value) != value for name, value in given.items()
        ):
            raise
        raise CheckpointError(  # no configuration is to blame
            f"the tensors of '{path}' make no {task} model that can be read: {error.what}",
            error.why,
            "Give a checkpoint of a published architecture; sizes that no tensor tells go into --config.",
        ) from error


def _silent_tensors(state: Mapping[str, Any], task: str, sizes: list[str]) -> list[str]:
    """The tensors that do not tell these sizes, and why where they are there."""
    keys = sorted({SOURCES[task].tensor_of(name) for name in sizes if not name.endswith("heads")})
    return [f"{key} is {_shape_or_kind(state[key])}" if key in state else key for key in keys]


def _shape_or_kind(value: Any) -> str:
    return str(list(value.shape)) if is_plain(value) else _kind(value)


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
    mistyped = [f"{shorten(key)} is {_kind(value)}" for key, value in wanted.items() if not _is_weight(value)]
    misshaped = [
        f"{shorten(key)} is {list(value.shape)} and should be {list(expected[key].shape)}"
        for key, value in wanted.items()
        if is_plain(value) and value.shape != expected[key].shape
    ]
    labels = ("missing", "unexpected", "no floating-point weights", "of the wrong shape")
    problems = {
        label: names for label, names in zip(labels, (missing, unexpected, mistyped, misshaped), strict=True) if names
    }
    if problems:
        room = 800 // len(problems)
        lines = [f"{len(names)} {label}: {listing(names, room)}" for label, names in problems.items()]
        why, fix = _explain(model, deployed, problems)
        raise CheckpointError(
            f"the keys of '{path}' do not fit a {getattr(model, 'task', '')} model", "\n".join([*why, *lines]), fix
        )
    weights = {key: value.to(torch.float32).contiguous() for key, value in wanted.items()}
    broken = [key for key, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise CheckpointError(
            f"the checkpoint '{path}' has NaN or infinite weights",
            f"In {listing(broken)}.",
            "The training run diverged or the file is damaged; take an earlier checkpoint.",
        )
    model.load_state_dict(weights, assign=True)


def _explain(model: torch.nn.Module, state: Mapping[str, Any], problems: Mapping[str, Any]) -> tuple[list[str], str]:
    """What the reason may be, a line each, and what to do about it."""
    config = getattr(model, "config", None)
    inferred = infer_sizes(state, config.task) if isinstance(config, BlipConfig | ClipConfig) else {}
    other = [
        f"{name} is {size} by the tensors and {getattr(config, name)} in the configuration"
        for name, size in inferred.items()
        if not name.endswith("heads") and getattr(config, name) != size
    ]
    sign = recognise(state)
    if sign and not other:
        return [sign[0]], sign[1]
    if other:
        fix = "Take these fields out of the configuration: the tensors tell them. --config wins over a config entry."
        if "image_size" in inferred and inferred["image_size"] != getattr(config, "image_size", None):
            fix += (
                " To run at another resolution, interpolate the position embedding as the training code does, and save."
            )
        return [f"{'; '.join(other[:LISTED])}."], fix
    if isinstance(config, BlipConfig | ClipConfig):
        position = state.get(SOURCES[config.task].positions)
        count = position.shape[-2] if is_plain(position) and position.dim() >= 2 else config.vision_tokens
        if count != config.vision_tokens:
            why = f"{count} positions are no class token and a square of patches; images have to be square."
            return [why], "Give the checkpoint of a model for square images, with one class token and no registers."
    if problems.keys() == {"missing"}:
        return [], "The state dict is incomplete: save that of the whole model again."
    if problems.keys() == {"unexpected"}:
        return (
            [],
            "MADTP's models have no such tensors: save the state dict without what inference does not need.",
        )
    if problems.keys() == {"no floating-point weights"}:
        return [], "Save them as plain tensors of float32 (or float16, bfloat16, float64) on the CPU."
    return [], "Give a checkpoint of the published architecture; sizes that tensors do not tell go into --config."


def _is_weight(value: Any) -> bool:
    return is_plain(value) and value.device.type == "cpu" and value.dtype in FLOATS


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}"
    if value.is_nested:
        return "nested"
    parts = (value.device.type, value.layout, value.dtype)
    return " ".join(str(part).removeprefix("torch.") for part in parts if part not in ("cpu", torch.strided))
