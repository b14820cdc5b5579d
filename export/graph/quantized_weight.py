"""Weights as integers: one scale for each output channel, symmetric."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxscript import ir

from export.graph.weight_nodes import WeightNode

INT8_MAX = 127


def quantized_weight(model: ir.Model, product: WeightNode) -> tuple[ir.Value, ir.Value]:
    """Two new initializers of `model`: a product's weight as int8 and its scales [channels] float32.

    The int8 values are computed when the file is written, so that no second copy of all weights is held.
    """
    weight, axis = product.weight, product.channel_axis
    names = f"{weight.name}.int8", f"{weight.name}.scale"
    if names[0] in model.graph.initializers:  # one weight of several products
        return model.graph.initializers[names[0]], model.graph.initializers[names[1]]
    tensor = weight.const_value
    assert tensor is not None
    scales = channel_scales(tensor.numpy(), axis)
    shape = [1] * len(tensor.shape)
    shape[axis] = -1

    def integers() -> Any:
        values = np.rint(tensor.numpy() / scales.reshape(shape)).clip(-INT8_MAX, INT8_MAX).astype(np.int8)
        return ir.Tensor(values, name=names[0])

    lazy = ir.LazyTensor(integers, ir.DataType.INT8, ir.Shape(tensor.numpy().shape), name=names[0])
    return _register(model, lazy), _register(model, ir.Tensor(scales, name=names[1]))


def channel_scales(weight: NDArray[Any], axis: int) -> NDArray[np.float32]:
    """[channels]: the scales that map the largest |weight| of every channel of `axis` to 127; 1 for an empty one."""
    others = tuple(other for other in range(weight.ndim) if other != axis)
    largest = np.abs(weight).max(axis=others)
    scales: NDArray[np.float32] = np.where(largest > 0, largest / INT8_MAX, 1).astype(np.float32)
    return scales


def _register(model: ir.Model, tensor: Any) -> ir.Value:
    value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def remove_unused_weights(model: ir.Model) -> None:
    """Drop initializers that no node reads any more."""
    used = {value.name for node in model.graph for value in node.inputs if value is not None}
    used |= {value.name for value in model.graph.outputs}
    for name in [name for name in model.graph.initializers if name not in used]:
        del model.graph.initializers[name]
