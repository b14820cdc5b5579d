"""The torch model in a narrow type, with what overflows it left in float32 as the exported graph has it."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
CAST_AROUND = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.Embedding)


def overflowing(model: nn.Module, dtype: torch.dtype) -> list[str]:
    """Names of the weights that are finite, but not in `dtype`; of those in question float16 alone overflows."""
    if dtype != torch.float16:
        return []
    return [
        name
        for name, weight in model.named_parameters()
        if weight.numel() and bool(weight.isfinite().all()) and float(weight.abs().max()) > torch.finfo(dtype).max
    ]


def cannot_stay_wide(model: nn.Module, dtype: torch.dtype) -> list[str]:
    """Those of the overflowing weights that belong to no layer around which a model can be cast."""
    modules = dict(model.named_modules())
    return [name for name in overflowing(model, dtype) if not isinstance(modules[_owner(name)], CAST_AROUND)]


def narrow_model(model: M, dtype: torch.dtype) -> M:
    """A copy in `dtype`; layers whose weights overflow it compute in float32, and cast what they take and give."""
    narrow = copy.deepcopy(model).to(dtype)
    modules, originals = dict(narrow.named_modules()), dict(model.named_modules())
    for owner in dict.fromkeys(map(_owner, overflowing(model, dtype))):
        layer = modules[owner]
        layer.float().load_state_dict(originals[owner].state_dict())
        layer.register_forward_pre_hook(lambda _, inputs: tuple(map(_wide, inputs)))
        layer.register_forward_hook(lambda _, inputs, output: output.to(dtype))
    return narrow


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
