"""Channels made alike before quantisation, by an exact change of the model.

Activations have one scale, which the largest channel decides; the small ones are left few steps. Between a LayerNorm
and the product that alone reads it, every channel can be shifted and scaled: the norm's weight and bias take the
change, the product's weight and bias undo it. In float32 the model computes the same, and nothing is added to it.
(SmoothQuant, arXiv 2211.10438; the shift is that of Outlier Suppression+, arXiv 2304.09145.)
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from calibration.products import Product, ProductMode
from madtp.data.samples import collate, load_samples
from madtp.errors import RangesError
from madtp.models import clip, vision
from madtp.models.parts import parts_of
from madtp.tasks.requests import count_tokens, torch_runners

SAMPLES = 8  # of the package, that are enough
LEAST, MOST = 1 / 64, 64.0  # of a channel's scale
Channels = Mapping[str, tuple[Tensor, Tensor]]


class SmoothPair(NamedTuple):
    """A LayerNorm, and the weight [out, in] and bias [out] of the only product that reads it; its name."""

    name: str
    norm: nn.LayerNorm
    weight: Tensor
    bias: Tensor


def smooth_pairs(model: Any) -> list[SmoothPair]:
    """Those of a model (`madtp.checkpoint.loading.Model`): of pre-norm layers, so none of BERT's."""
    pairs = []
    for name, module in model.named_modules():
        if isinstance(module, vision.Block):
            qkv, fc1 = module.attn.qkv, module.mlp.fc1
            pairs.append(SmoothPair(f"{name}.attn.qkv.weight", module.norm1, qkv.weight, qkv.bias))
            pairs.append(SmoothPair(f"{name}.mlp.fc1.weight", module.norm2, fc1.weight, fc1.bias))
        elif isinstance(module, clip.Block):
            attention, fc1 = module.attn, module.mlp.c_fc
            weight = f"{name}.attn.in_proj_weight"
            pairs.append(SmoothPair(weight, module.ln_1, attention.in_proj_weight, attention.in_proj_bias))
            pairs.append(SmoothPair(f"{name}.mlp.c_fc.weight", module.ln_2, fc1.weight, fc1.bias))
    return pairs


def channel_ranges(model: Any, requests: Iterable[Mapping[str, Tensor]], temperature: float) -> Channels:
    """Least and largest value [C] of every channel that `smooth` can change, by the name of the product.

    A few real samples are enough: whatever they show, the model computes the same.

    Args:
        requests: inputs of `run_request`, at a temperature at which the model prunes.

    Raises:
        RangesError: activations are NaN or infinite.
    """
    names = {pair.name for pair in smooth_pairs(model)}
    found = dict[str, tuple[Tensor, Tensor]]()

    def see(product: Product) -> None:
        if product.name not in names:
            return
        rows = product.activations.flatten(0, -2)
        low, high = rows.amin(dim=0), rows.amax(dim=0)
        if not (low.isfinite().all() and high.isfinite().all()):
            raise RangesError(f"the input of '{product.name}' is NaN or infinite", "Its channels have no range.")
        least, most = found.get(product.name, (low, high))
        found[product.name] = torch.minimum(least, low), torch.maximum(most, high)

    runners = torch_runners(parts_of(model))
    with torch.no_grad(), ProductMode(model, see):
        for inputs in requests:
            count_tokens(model.config, runners, inputs, temperature)
    return found


def default_channels(model: Any, temperature: float) -> Channels:
    """`channel_ranges` over samples of the package: the same for one checkpoint wherever they are asked for."""
    requests = load_samples(None, None, model.config, demos=SAMPLES).requests
    return channel_ranges(model, (collate([request], model.config) for request in requests), temperature)


def smooth(model: Any, channels: Channels) -> list[str]:
    """Shift every channel to lie around zero, and share its size between activations and weights; in place.

    Args:
        channels: from `channel_ranges`.

    Returns:
        Names of the products whose activations were changed.
    """
    pairs = [pair for pair in smooth_pairs(model) if pair.name in channels]
    with torch.no_grad():
        for pair in pairs:
            low, high = (bound.double() for bound in channels[pair.name])
            centre = (low + high) / 2
            weight = pair.weight.double()
            scale = _scales((high - low) / 2, weight.abs().amax(dim=0))
            pair.bias.copy_(pair.bias.double() + weight @ centre)
            pair.weight.copy_(weight * scale)
            pair.norm.bias.copy_((pair.norm.bias.double() - centre) / scale)
            pair.norm.weight.copy_(pair.norm.weight.double() / scale)
    return [pair.name for pair in pairs]


def _scales(activations: Tensor, weights: Tensor) -> Tensor:
    """[C]: what every channel is divided by; 1 for one that is always zero, on either side. Geometric mean 1."""
    used = (activations > 0) & (weights > 0)
    scales = torch.where(used, activations / weights, 1.0).sqrt()
    scales = torch.where(used, scales / scales[used].log().mean().exp(), 1.0)
    return scales.clamp(LEAST, MOST)
