"""Graph pass: weight products in FP8 (E4M3) with ranges known beforehand, as QuantizeLinear and DequantizeLinear nodes.

A pass of our own: ONNX Runtime's quantizer derives FP8 scales from standard deviations, which cuts off outliers, and
other libraries drop functions.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from onnxscript import ir

from export.graph.quantize_static import Ranges
from export.graph.quantized_weight import LARGEST, quantized_weight, register_weight, remove_unused_weights
from export.graph.weight_nodes import WEIGHT_INPUT, WeightNode

FP8 = ir.DataType.FLOAT8E4M3FN
ZERO = "fp8_zero"


def quantize_fp8(model: ir.Model, products: Iterable[WeightNode], ranges: Ranges) -> None:
    """Compute weight products in FP8: weights per output channel, activations per tensor, both symmetric.

    Args:
        products: those of `model` to quantize.
        ranges: of all of them (`calibration.ranges`).
    """
    for product in products:
        low, high = ranges[product.names[0]]  # joined products read the same activations
        _quantize_activations(model, product, max(-low, high))
        _quantize_weight(model, product)
    remove_unused_weights(model)


def _quantize_activations(model: ir.Model, product: WeightNode, largest: float) -> None:
    """A pair of nodes before each product, though several read the same: TensorRT fuses only those."""
    name = product.node.outputs[0].name
    scale = register_weight(
        model, ir.Tensor(np.array(largest / LARGEST[FP8] if largest > 0 else 1, np.float32), name=f"{name}.input_scale")
    )
    if ZERO not in model.graph.initializers:
        register_weight(model, ir.Tensor(np.zeros((), FP8.numpy()), name=ZERO))
    zero = model.graph.initializers[ZERO]
    quantized = _node("QuantizeLinear", [product.activations, scale, zero], f"{name}.input_fp8")
    restored = _node("DequantizeLinear", [quantized.outputs[0], scale, zero], f"{name}.input")
    model.graph.insert_before(product.node, [quantized, restored])
    product.node.replace_input_with(0, restored.outputs[0])


def _quantize_weight(model: ir.Model, product: WeightNode) -> None:
    weight, scale = quantized_weight(model, product, FP8)
    name = f"{product.node.outputs[0].name}.weight"
    restored = _node("DequantizeLinear", [weight, scale], name, axis=product.channel_axis)
    model.graph.insert_before(product.node, restored)
    product.node.replace_input_with(WEIGHT_INPUT, restored.outputs[0])


def _node(op_type: str, inputs: list[ir.Value], output: str, **attributes: Any) -> ir.Node:
    return ir.node(op_type, inputs, attributes, outputs=[ir.Value(name=output)])
