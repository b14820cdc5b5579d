"""Weights in eight bits: one scale for each output channel, symmetric."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxscript import ir

from export.graph.weight_nodes import WeightNode

LARGEST = {ir.DataType.INT8: 127.0, ir.DataType.FLOAT8E4M3FN: 448.0}  # value of each type that is used


def quantized_weight(
    model: ir.Model, product: WeightNode, dtype: ir.DataType = ir.DataType.INT8
) -> tuple[ir.Value, ir.Value]:
    """Two new initializers of `model`: a product's weight in `dtype`, and its scales [channels] float32.

    The values are computed when the file is written, so that no second copy of all weights is held.
    """
    weight, axis, largest = product.weight, product.channel_axis, LARGEST[dtype]
    names = f"{weight.name}.{dtype.name.lower()}", f"{weight.name}.scale"
    if names[0] in model.graph.initializers:  # one weight of several products
        return model.graph.initializers[names[0]], model.graph.initializers[names[1]]
    tensor = weight.const_value
    assert tensor is not None
    scales = channel_scales(tensor.numpy(), axis, largest)
    shape = [1] * len(tensor.shape)
    shape[axis] = -1

    def values() -> Any:
        scaled = (tensor.numpy() / scales.reshape(shape)).clip(-largest, largest)
        rounded = np.rint(scaled) if dtype == ir.DataType.INT8 else scaled
        return ir.Tensor(rounded.astype(dtype.numpy()), name=names[0])

    lazy = ir.LazyTensor(values, dtype, ir.Shape(tensor.numpy().shape), name=names[0])
    return register_weight(model, lazy), register_weight(model, ir.Tensor(scales, name=names[1]))


def channel_scales(weight: NDArray[Any], axis: int, largest: float) -> NDArray[np.float32]:
    """[channels]: the scales that map the largest |weight| of every channel of `axis` to `largest`; 1 for zeros."""
    others = tuple(other for other in range(weight.ndim) if other != axis)
    found = np.abs(weight).max(axis=others)
    scales: NDArray[np.float32] = np.where(found > 0, found / largest, 1).astype(np.float32)
    return scales


def register_weight(model: ir.Model, tensor: Any) -> ir.Value:
    """A new initializer under its tensor's name."""
    value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def remove_unused_weights(model: ir.Model) -> None:
    """Drop initializers that no node reads any more."""
    used = {value.name for node in model.graph for value in node.inputs if value is not None}
    used |= {value.name for value in model.graph.outputs}
    for name in [name for name in model.graph.initializers if name not in used]:
        del model.graph.initializers[name]
