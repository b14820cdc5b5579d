"""Graph pass: weight products in INT8 whose activations are quantized while the model runs, without calibration.

The nodes are standard ONNX. ONNX Runtime fuses each product, with its bias, to `DynamicQuantizeMatMul`, or to
`MatMulIntegerToFloat` where several products read one value (their activations are then quantized once).
"""

from collections.abc import Iterable

from onnxscript import ir

from export.graph.quantized_weight import quantized_weight, remove_unused_weights
from export.graph.weight_nodes import WeightNode


def quantize_dynamic(model: ir.Model, products: Iterable[WeightNode]) -> None:
    """Compute weight products in INT8: weights per output channel and symmetric, activations uint8 per tensor.

    Args:
        products: those of `model` to quantize; every MatMul among them. Gemm and Conv stay as they are: ONNX Runtime
            has no fused kernels for these in this form.
    """
    quantized: dict[ir.Value, list[ir.Value]] = {}  # activations -> their uint8 value, scale and zero point
    for product in products:
        if product.node.op_type == "MatMul":
            _replace(model, product, quantized)
    remove_unused_weights(model)


def _replace(model: ir.Model, product: WeightNode, quantized: dict[ir.Value, list[ir.Value]]) -> None:
    node, source = product.node, product.activations
    weight, weight_scale = quantized_weight(model, product)
    if source not in quantized:
        quantizer = _node("DynamicQuantizeLinear", [source], [f"{source.name}.{part}" for part in _QUANTIZED])
        model.graph.insert_before(node, quantizer)
        quantized[source] = list(quantizer.outputs)
    activations, scale, zero_point = quantized[source]
    output = node.outputs[0]
    name = output.name
    assert name is not None
    integer = _node("MatMulInteger", [activations, weight, zero_point], [f"{name}.int32"])
    wide = _node("Cast", [integer.outputs[0]], [f"{name}.wide"], to=ir.DataType.FLOAT)
    scales = _node("Mul", [scale, weight_scale], [f"{name}.scale"])
    scaled = _node("Mul", [wide.outputs[0], scales.outputs[0]], [name])
    scaled.outputs[0].shape, scaled.outputs[0].type = output.shape, output.type
    output.name = None
    ir.convenience.replace_nodes_and_values(
        model.graph, node, [node], [integer, wide, scales, scaled], [output], [scaled.outputs[0]]
    )


_QUANTIZED = ("uint8", "scale", "zero_point")


def _node(op_type: str, inputs: list[ir.Value], outputs: list[str], **attributes: ir.DataType) -> ir.Node:
    values = [ir.Value(name=name) for name in outputs]
    return ir.node(op_type, inputs, {name: int(value) for name, value in attributes.items()}, outputs=values)
