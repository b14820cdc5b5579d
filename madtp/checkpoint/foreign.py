"""Weights that are not MADTP's, recognised by the names of their tensors: what they are, and what to do."""

import re
from collections.abc import Mapping
from typing import Any

from madtp.checkpoint.sizes import is_plain

TRAIN = "Train it with MADTP first, or give the checkpoint that came out of that."
_WHOLE = "Give the checkpoint of the whole model, trained with MADTP."

# The first pattern that any key matches tells. What comes with a model (adapters, scales) before what the model is.
_SIGNS: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern), what, fix)
    for pattern, what, fix in (
        (
            r"(^|[._])lora_?(A|B|a|b|up|down|embedding|alpha)(_|\b)",
            "It holds LoRA adapters beside, or instead of, the weights.",
            "Merge them first (in PEFT: model.merge_and_unload()), and save the state dict of the merged model.",
        ),
        (
            r"(\.(qweight|qzeros|SCB|absmax|quant_map|zero_points?|weight_scale|input_scale|scales?)$"
            r"|_packed_params|quant_state|activation_post_process|fake_quant)",
            "It holds a quantised model.",
            "Give the checkpoint of the float model that it was made from.",
        ),
        (
            r"(^|\.)_?flat_param(_|$)",
            "It holds the flattened shards of FSDP.",
            "Save the full state dict: FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT).",
        ),
        (
            r"(^|\.)(vision_model\.(encoder\.layers|embeddings)|text_model\.|qformer\.)",
            "It is a Hugging Face model, whose keys are others than those of the published code.",
            TRAIN,
        ),
        (
            r"^text_encoder\.bert\.",
            "It is an ALBEF model; MADTP's are BLIP and CLIP.",
            _WHOLE,
        ),
        (
            r"^visual\.(layer\d|attnpool)\.",
            "It is a CLIP model with a ResNet for images; MADTP prunes the tokens of a vision transformer.",
            _WHOLE,
        ),
    )
)
_PARTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), what)
    for pattern, what in (
        (r"^(blocks\.\d+\.|patch_embed\.|pos_embed$)", "an image encoder (ViT)"),
        (r"^(bert\.|embeddings\.word_embeddings|encoder\.layer\.\d+\.attention\.)", "a text encoder (BERT)"),
        (r"^(conv1\.weight|layer\d\.\d+\.|features\.\d+\.)", "a convolutional network"),
    )
)


def recognise(state: Mapping[str, Any]) -> tuple[str, str] | None:
    """What weights are that cannot be loaded, in a sentence, and what to do; None where nothing tells."""
    for pattern, what, fix in _SIGNS:
        if any(pattern.search(key) for key in state):
            return what, fix
    values = [value for value in state.values() if is_plain(value)]
    for share, what, fix in (
        (
            [value.numel() == 0 for value in values],
            "Its tensors are empty: shards that DeepSpeed (ZeRO-3) keeps in other files.",
            "Run the zero_to_fp32.py beside the checkpoint, and give --ckpt the file that it writes.",
        ),
        (
            [value.device.type == "meta" for value in values],
            "Its tensors hold no values: the model was saved from the meta device.",
            "Save it again after its weights are loaded.",
        ),
        (
            [not value.is_floating_point() and not value.is_complex() for value in values],
            "Its tensors are not floating-point numbers, as in a quantised model.",
            "Give the checkpoint of the float model that it was made from.",
        ),
    ):
        if sum(share) > len(values) / 2:
            return what, fix
    if "space_dict" in state:
        return None
    for prefix, name in (("visual_encoder.", "BLIP"), ("visual.", "CLIP")):
        if any(key.startswith(prefix) for key in state):
            lack = "It lacks space_dict, the dictionary that MADTP trains and prunes with"
            return f"{lack}: it looks like a plain {name} model.", TRAIN
    for pattern, what in _PARTS:
        if any(pattern.search(key) for key in state):
            return f"It is {what} alone.", _WHOLE
    return None
