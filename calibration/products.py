"""Watching the weight products of a running torch model: what goes into each, and what should go in instead."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from madtp.models.weight_products import weight_products

OnProduct = Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor] | None]
PRODUCTS = {F.linear, F.conv2d, torch.matmul, Tensor.matmul, Tensor.__matmul__}


class ProductMode(TorchFunctionMode):
    """Context in which every product of activations with a weight of a model is shown to a function.

    Args:
        model: a `madtp.checkpoint.loading.Model`; its weights are known by where they lie in memory, so that a
            transposed view of one is it too.
        on_product: given the product's name (`madtp.models.weight_products`), its activations, and its weight as the
            call has it; returns what to compute with instead, or None for these.
    """

    def __init__(self, model: Any, on_product: OnProduct) -> None:
        super().__init__()
        named = dict(model.named_parameters(remove_duplicate=False))
        self._names = {_place(named[name]): name for name in weight_products(model)}
        self._on_product = on_product

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = self._names.get(_place(args[1])) if func in PRODUCTS and isinstance(args[1], Tensor) else None
        if name is not None:
            changed = self._on_product(name, args[0], args[1])
            args = args if changed is None else (*changed, *args[2:])
        return func(*args, **(kwargs or {}))


def _place(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel()
