"""Products of 16-bit numbers on a CPU that are the same on every host, for what others are held to.

torch leaves them to oneDNN, which computes them otherwise on every kind of processor: where it has AMX, NaN and
infinity get lost in bfloat16. In float64 such products are exact and their sums nearly so; rounded once, they are what
torch promises of a product: sums in a wider type, one rounding at the end.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

NARROW = (torch.float16, torch.bfloat16)
_ATEN = torch.ops.aten
PRODUCTS = {  # what linear layers, matrix products, einsum, convolutions and attention come to on a CPU
    _ATEN.mm,
    _ATEN.addmm,
    _ATEN.bmm,
    _ATEN.baddbmm,
    _ATEN.mv,
    _ATEN.addmv,
    _ATEN.dot,
    _ATEN.convolution,
    _ATEN._scaled_dot_product_flash_attention_for_cpu,
}


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, of the same type; 16-bit ones on a CPU the same on every host."""
    if not is_narrow(left):
        return left @ right
    return (left.double() @ right.double()).to(left.dtype)


def is_narrow(value: Any) -> bool:
    """Whether it is a tensor of 16-bit floating-point numbers on a CPU."""
    return isinstance(value, Tensor) and value.dtype in NARROW and value.device.type == "cpu"


class WideProducts(TorchDispatchMode):
    """Context in which a model held in 16 bits on a CPU gives the same on every host; elsewhere it changes nothing.

    (Custom ops see to theirs themselves, with `product`.)

    Args:
        float32: of float32 too, for a model that holds both.
    """

    def __init__(self, *, float32: bool = False) -> None:
        super().__init__()
        self._types = (*NARROW, torch.float32) if float32 else NARROW

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        narrow = next(filter(self._is_meant, (*args, *kwargs.values())), None)
        if narrow is None or func.overloadpacket not in PRODUCTS:
            return func(*args, **kwargs)
        widen, round_back = _cast(self._is_meant, torch.float64), _cast(_is_float64, narrow.dtype)
        return tree_map(round_back, func(*tree_map(widen, args), **tree_map(widen, kwargs)))

    def _is_meant(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.dtype in self._types and value.device.type == "cpu"


def _is_float64(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float64


def _cast(is_meant: Callable[[Any], bool], dtype: torch.dtype) -> Callable[[Any], Any]:
    return lambda value: value.to(dtype) if is_meant(value) else value
