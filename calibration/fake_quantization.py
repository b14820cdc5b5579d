"""Weight products of a torch model computed as low precision would: rounded in float32, as runtimes round."""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from calibration.histograms import Range
from calibration.products import Product, ProductMode

UINT8, INT8, E4M3 = 255.0, 127.0, 448.0  # largest values
LEAST_SCALE = torch.finfo(torch.float32).tiny
PRECISIONS = ("int8", "static-int8", "fp8", "bf16", "fp16")


def round_uint8(x: Tensor) -> Tensor:
    """ONNX's DynamicQuantizeLinear and back: one asymmetric scale, from the tensor's own least and largest value."""
    least, most = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = ((most - least) / UINT8).clamp(min=LEAST_SCALE)
    zero = (-least / scale).round()
    return (((x / scale).round() + zero).clamp(0, UINT8) - zero) * scale


def round_int8(x: Tensor, largest: Tensor | float) -> Tensor:
    """Symmetric int8 and back; `largest` is what becomes 127, of the tensor or (broadcast) of each channel."""
    scale = torch.as_tensor(largest / INT8).clamp(min=LEAST_SCALE)
    return (x / scale).round().clamp(-INT8, INT8) * scale


def round_fp8(x: Tensor, largest: Tensor | float) -> Tensor:
    """E4M3 and back; `largest` becomes 448, the largest number that it has."""
    scale = torch.as_tensor(largest / E4M3).clamp(min=LEAST_SCALE)
    return (x / scale).clamp(-E4M3, E4M3).to(torch.float8_e4m3fn).to(x.dtype) * scale


def channel_maxima(weight: Tensor, axis: int) -> Tensor:
    """The largest magnitude of each output channel, broadcastable to the weight."""
    return weight.abs().amax(dim=[dim for dim in range(weight.dim()) if dim != axis], keepdim=True)


class FakeQuantization:
    """How the weight products of a model would be computed in a precision.

    Weights are rounded once and kept.

    Args:
        model: a `madtp.checkpoint.loading.Model`.
        precision: "int8" (activations uint8 by what each tensor holds, weights int8 per channel), "static-int8"
            (activations int8 by a table), "fp8" (E4M3, likewise), "bf16" or "fp16".
        ranges: of each product's activations, for the precisions that take them from a table.
    """

    def __init__(self, model: Any, precision: str, ranges: Mapping[str, Range] | None = None) -> None:
        self.model, self._precision, self._ranges = model, precision, ranges or {}
        self._activations, self._weights = _ROUNDING[precision]
        self._rounded: dict[str, Tensor] = {}

    def of(self, products: Collection[str]) -> AbstractContextManager[Any]:
        """Context in which these products are computed so; the others stay in float32."""
        return ProductMode(self.model, partial(self._round, frozenset(products)))

    def can_run(self, product: Product) -> bool:
        """Whether the runtime has it in this precision: of dynamic INT8 it has MatMul alone."""
        return self._precision != "int8" or product.is_matmul

    def _round(self, products: frozenset[str], product: Product) -> tuple[Tensor, Tensor] | None:
        name = product.name
        if name not in products:
            return None
        if name not in self._rounded:
            self._rounded[name] = self._weights(product.weight, product.axis)
        low, high = self._ranges.get(name, (0.0, 0.0))
        return self._activations(product.activations, max(-low, high)), self._rounded[name]


_Activations = Callable[[Tensor, float], Tensor]
_Weights = Callable[[Tensor, int], Tensor]
_ROUNDING: dict[str, tuple[_Activations, _Weights]] = {
    "int8": (lambda x, _: round_uint8(x), lambda w, axis: round_int8(w, channel_maxima(w, axis))),
    "static-int8": (round_int8, lambda w, axis: round_int8(w, channel_maxima(w, axis))),
    "fp8": (round_fp8, lambda w, axis: round_fp8(w, channel_maxima(w, axis))),
    "bf16": (lambda x, _: x.bfloat16().to(x.dtype), lambda w, _: w.bfloat16().to(w.dtype)),
    "fp16": (lambda x, _: x.half().to(x.dtype), lambda w, _: w.half().to(w.dtype)),
}
