"""The torch model in a narrow type, with what the exported graph has in float32 left in float32.

In float16 that is what overflows it. In bfloat16 tokens are float32 from layer to layer: the model is one in float32
whose linear layers are narrow (`export.graph.half_precision`).
"""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from madtp.models.clip import Attention
from madtp.models.weight_products import weight_products

M = TypeVar("M", bound=nn.Module)
NARROW_LAYERS = (nn.Linear, Attention)  # CLIP's attention holds the weights of its first product itself
PIXELS_RANK = 4
CAST_AROUND = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.Embedding)


def overflowing(model: nn.Module, dtype: torch.dtype) -> list[str]:
    """Names of the weights that are finite, but not in `dtype`; of those in question float16 alone overflows."""
    if dtype != torch.float16:
        return []
    return [
        name
        for name, weight in model.named_parameters()
        if weight.numel()
        and bool(weight.isfinite().all())
        and float(weight.detach().abs().max()) > torch.finfo(dtype).max
    ]


def cannot_stay_wide(model: nn.Module, dtype: torch.dtype) -> list[str]:
    """Those of the overflowing weights that belong to no layer around which a model can be cast."""
    modules = dict(model.named_modules())
    return [name for name in overflowing(model, dtype) if not isinstance(modules[_owner(name)], CAST_AROUND)]


def narrow_model(model: M, dtype: torch.dtype) -> M:
    """A copy in `dtype`; layers whose weights overflow it compute in float32, and cast what they take and give."""
    if dtype == torch.bfloat16:
        return _with_narrow_layers(copy.deepcopy(model))
    narrow = copy.deepcopy(model).to(dtype)
    modules, originals = dict(narrow.named_modules()), dict(model.named_modules())
    for owner in dict.fromkeys(map(_owner, overflowing(model, dtype))):
        layer = modules[owner]
        layer.float().load_state_dict(originals[owner].state_dict())
        layer.register_forward_pre_hook(lambda _, inputs: tuple(map(_wide, inputs)))
        layer.register_forward_hook(lambda _, inputs, output: output.to(dtype))
    return narrow


def _with_narrow_layers(model: M) -> M:
    """Make linear layers bfloat16, but for the first product of words; in place."""
    modules = dict(model.named_modules())
    products = {_owner(name): product for name, product in weight_products(model).items()}
    for name, module in modules.items():
        product = products.get(name)
        if product is not None and isinstance(module, NARROW_LAYERS):
            if product.layer == 0 and product.group == "qkv" and product.encoder != "vision":
                if isinstance(module, nn.Linear):
                    module.register_forward_hook(lambda _, inputs, output: output.bfloat16())
                continue
            for weight in module.parameters(recurse=False):
                weight.data = weight.data.bfloat16()
            module.register_forward_pre_hook(lambda _, inputs: tuple(map(_bfloat16, inputs)))
    return model


def narrow_input(value: Tensor, dtype: torch.dtype) -> Tensor:
    """An input as a model of `narrow_model` takes it; in bfloat16 pixels [B, 3, S, S] stay float32."""
    pixels = dtype == torch.bfloat16 and value.dim() == PIXELS_RANK
    return value if pixels or not value.is_floating_point() else value.to(dtype)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _bfloat16(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
