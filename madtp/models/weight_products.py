"""Products of activations with weights: what quantisation is about, and how calibration and export name them.

A weight product is named after its weight in the model (`visual_encoder.blocks.0.attn.qkv.weight`), and has a place:
encoder, layer and group. Parts know weights by names of their own (`part_weight_names`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from madtp.models.parts import Part

GROUPS = (
    "qkv",
    "projection",
    "fc1",
    "fc2",
    "cross_qkv",
    "cross_projection",
    "alignment",
    "patches",
    "head",
)
JOINED = "+"  # between the names of products that a graph computes as one

# Weight names: encoder by prefix, longest first; group by what follows the layer's number.
_ENCODERS = {
    "visual_encoder.": "vision",
    "visual.": "vision",
    "text_encoder.": "text",
    "text_decoder.": "decoder",
    "transformer.": "text",
}
_LAYER = re.compile(r"\.(?:blocks|layer|resblocks)\.(\d+)\.(.+)$")
_IN_LAYER = (
    (r"attn\.(qkv|in_proj_weight)", "qkv"),
    (r"attention\.self\.(query|key|value)", "qkv"),
    (r"attn\.(proj|out_proj)\.|attention\.output\.dense", "projection"),
    (r"mlp\.(fc1|c_fc)\.|intermediate\.dense", "fc1"),
    (r"mlp\.(fc2|c_proj)\.|output\.dense\.", "fc2"),
    (r"crossattention\.self\d?\.(query|key|value)", "cross_qkv"),
    (r"crossattention\.output\.(dense|merge_layer)", "cross_projection"),
    (r"query_model\.q_map\.", "alignment"),
)
_OUTSIDE = (
    (r"(patch_embed\.proj|conv1)\.weight$", "patches"),
    (r"^space_dict$", "alignment"),
    (
        r"(^|\.)(cls_head\.\d+|vision_proj|text_proj|itm_head|cls\.predictions\.(transform\.dense|decoder))\.weight$",
        "head",
    ),
    (r"^(text_projection|visual\.proj)$", "head"),
)


@dataclass(frozen=True)
class WeightProduct:
    """The product with one weight.

    Attributes:
        name: of the weight in the model.
        encoder: "vision", "text" or "decoder"; "model" for what belongs to none.
        layer: None outside the layers.
        group: one of `GROUPS`. "alignment" products give the scores that select tokens, and nothing else.
    """

    name: str
    encoder: str
    layer: int | None
    group: str

    @property
    def place(self) -> str:
        """`vision.0.qkv`, or `model.head`: what patterns of recipes match, and sensitivity ranks."""
        return ".".join([self.encoder, *([] if self.layer is None else [str(self.layer)]), self.group])

    def matches(self, pattern: str) -> bool:
        """Whether a pattern with `*` names its place."""
        return fnmatchcase(self.place, pattern)


def weight_products(model: Any) -> dict[str, WeightProduct]:
    """All weight products of a model (`madtp.checkpoint.loading.Model`) by name.

    A weight that is an embedding and an output layer too goes by the name of the output layer.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    found = (_product(name) for name, weight in named.items() if weight.dim() >= 2)
    return {product.name: product for product in found if product is not None}


def part_weight_names(model: Any, part: Part) -> dict[str, str]:
    """Weight names inside a part -> names in the model, of the weight products that the part may compute."""
    products = weight_products(model)
    by_weight = {id(weight): name for name, weight in _parameters(model).items() if name in products}
    own = _parameters(part.module)
    return {name: by_weight[id(weight)] for name, weight in own.items() if id(weight) in by_weight}


def _parameters(module: Any) -> Mapping[str, Any]:
    return dict(module.named_parameters(remove_duplicate=False))


def _product(name: str) -> WeightProduct | None:
    encoder = next((encoder for prefix, encoder in _ENCODERS.items() if name.startswith(prefix)), "model")
    layer = _LAYER.search(name)
    patterns, text = (_OUTSIDE, name) if layer is None else (_IN_LAYER, layer[2])
    for pattern, group in patterns:
        if re.match(pattern, text) if layer else re.search(pattern, text):
            return WeightProduct(name, encoder, None if layer is None else int(layer[1]), group)
    return None
