"""What the tensors of a checkpoint tell about its model: the task, and the sizes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from madtp.models.config import HEAD_SIZE


@dataclass(frozen=True)
class SizeSources:
    """Where the sizes of a task's models are read from.

    Attributes:
        dims: size -> (tensor, dimension).
        layers: size -> prefix of the numbered layers that it counts.
        positions: position embedding of the image encoder; with the patch size it tells the image size.
        widths: width -> number of heads, of HEAD_SIZE columns each.
    """

    dims: Mapping[str, tuple[str, int]]
    layers: Mapping[str, str]
    positions: str
    widths: Mapping[str, str]

    def tensor_of(self, size: str) -> str:
        """The tensor that tells `size`, for messages."""
        if size == "image_size":
            return self.positions
        return f"{self.layers[size]}*" if size in self.layers else self.dims[size][0]


def _blip(text: str, **extra: tuple[str, int]) -> SizeSources:
    """Sources of a BLIP model whose BERT has the key prefix `text`."""
    dims = {
        "sd_num": ("space_dict", 0),
        "sd_dim": ("space_dict", 1),
        "vit_dim": ("visual_encoder.patch_embed.proj.weight", 0),
        "patch_size": ("visual_encoder.patch_embed.proj.weight", 2),
        "vit_mlp": ("visual_encoder.blocks.0.mlp.fc1.weight", 0),
        "vocab_size": (f"{text}embeddings.word_embeddings.weight", 0),
        "text_hidden": (f"{text}embeddings.word_embeddings.weight", 1),
        "max_position": (f"{text}embeddings.position_embeddings.weight", 0),
        "text_inter": (f"{text}encoder.layer.0.intermediate.dense.weight", 0),
        **extra,
    }
    layers = {"vit_depth": "visual_encoder.blocks.", "text_layers": f"{text}encoder.layer."}
    return SizeSources(dims, layers, "visual_encoder.pos_embed", {"vit_dim": "vit_heads", "text_hidden": "text_heads"})


SOURCES = {
    "nlvr": _blip("text_encoder."),
    "vqa": _blip("text_encoder."),
    "caption": _blip("text_decoder.bert."),
    "retrieval": _blip("text_encoder.", embed_dim=("vision_proj.weight", 0)),
    "clip": SizeSources(
        {
            "embed_dim": ("text_projection", 1),
            "patch_size": ("visual.conv1.weight", 2),
            "vision_width": ("visual.conv1.weight", 0),
            "context_length": ("positional_embedding", 0),
            "vocab_size": ("token_embedding.weight", 0),
            "text_width": ("token_embedding.weight", 1),
            "sd_num": ("space_dict", 0),
            "sd_dim": ("space_dict", 1),
        },
        {"vision_layers": "visual.transformer.resblocks.", "text_layers": "transformer.resblocks."},
        "visual.positional_embedding",
        {"vision_width": "vision_heads", "text_width": "text_heads"},
    ),
}


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


def infer_sizes(state: Mapping[str, Any], task: str) -> dict[str, int]:
    """Sizes of a model as far as its tensors tell; a size whose tensor is missing is left out."""
    sources = SOURCES[task]
    sizes: dict[str, int] = {}
    for name, (key, dim) in sources.dims.items():
        tensor = state.get(key)
        if is_plain(tensor) and dim < tensor.dim():
            sizes[name] = tensor.shape[dim]
    for name, prefix in sources.layers.items():
        pattern = re.compile(rf"{re.escape(prefix)}(\d{{1,3}})\.")
        sizes[name] = max((int(match[1]) + 1 for key in state if (match := pattern.match(key))), default=0)
    if task == "nlvr":
        merging = re.compile(r".*layer\.(\d{1,3})\.crossattention\.output\.merge_layer")
        found = [int(match[1]) for key in state if (match := merging.match(key))]
        sizes["merge_from"] = min(found, default=sizes["text_layers"])
    position = state.get(sources.positions)
    if is_plain(position) and position.dim() >= 2 and "patch_size" in sizes:
        sizes["image_size"] = round(max(position.shape[-2] - 1, 0) ** 0.5) * sizes["patch_size"]
    for width, heads in sources.widths.items():
        if sizes.get(width, 1) % HEAD_SIZE == 0:
            sizes[heads] = sizes[width] // HEAD_SIZE
    return {name: size for name, size in sizes.items() if size or name == "merge_from"}


def is_plain(value: Any) -> TypeGuard[Tensor]:
    """A dense tensor, whose shape can be asked for: no sparse and no nested one."""
    return isinstance(value, Tensor) and not value.is_nested and value.layout is torch.strided
