"""Watching the weight products of a running torch model: what goes into each, and what should go in instead."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from madtp.models.weight_products import weight_products

BY_ROWS = {F.linear, F.conv2d}  # the weight's first axis counts the output channels
BY_COLUMNS = {torch.matmul, Tensor.matmul, Tensor.__matmul__}  # its last one
PRODUCTS = BY_ROWS | BY_COLUMNS


class Product(NamedTuple):
    """One product of a running model.

    Attributes:
        name: see `madtp.models.weight_products`.
        weight: as the call has it; `axis` of it counts the output channels.
    """

    name: str
    activations: Tensor
    weight: Tensor
    axis: int

    @property
    def is_matmul(self) -> bool:
        """Whether ONNX has a MatMul for it, and neither a Conv nor the Gemm of a matrix and a bias."""
        return self.weight.dim() == 2 and (self.activations.dim() > 2 or self.axis == 1)

    @property
    def multiply_adds(self) -> int:
        """Of a convolution, of kernels that do not overlap."""
        if self.weight.dim() > 2:
            return self.activations.numel() * self.weight.shape[0]
        return self.activations.numel() * self.weight.shape[self.axis]


OnProduct = Callable[[Product], tuple[Tensor, Tensor] | None]


class ProductMode(TorchFunctionMode):
    """Context in which every product of activations with a weight of a model is shown to a function.

    Args:
        model: a `madtp.checkpoint.loading.Model`; its weights are known by where they lie in memory, so that a
            transposed view of one is it too.
        on_product: returns the activations and the weight to compute with instead, or None for those of the call.
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
            changed = self._on_product(Product(name, args[0], args[1], int(func in BY_COLUMNS)))
            args = args if changed is None else (*changed, *args[2:])
        return func(*args, **(kwargs or {}))


def _place(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel()
