"""Graph pass: weight products in INT8 whose activations are quantized while the model runs, without calibration."""

from collections.abc import Iterable
from itertools import count
from typing import Any

import numpy as np
from onnxscript import ir

from export.graph.quantized_linear import QUANTIZED_LINEAR, QUANTIZED_LINEAR_GELU, quantized_linear_functions
from export.graph.quantized_weight import quantized_weight, register_weight, remove_unused_weights
from export.graph.weight_nodes import WeightNode
from madtp.ops.spec import DOMAIN, VERSION


def quantize_dynamic(model: ir.Model, products: Iterable[WeightNode]) -> None:
    """Compute weight products in INT8: weights per output channel and symmetric, activations uint8 per tensor.

    Each becomes one node with its bias and its GELU, if it has them (`export.graph.quantized_linear`).

    Args:
        products: those of `model` to quantize; every MatMul among them. Gemm and Conv stay as they are: ONNX Runtime
            has no fused kernels for these in this form.
    """
    chosen = [product for product in products if product.node.op_type == "MatMul"]
    for product in chosen:
        _replace(model, product)
    used = {node.op_type for node in model.graph if node.domain == DOMAIN}
    for function in quantized_linear_functions():
        if function.name in used:
            body = ir.serde.deserialize_function(function)
            model.functions[body.identifier()] = body
            model.opset_imports[DOMAIN] = VERSION
    remove_unused_weights(model)


def _replace(model: ir.Model, product: WeightNode) -> None:
    weight, scale = quantized_weight(model, product)
    if weight.consumers():
        weight = _another(model, weight)
    columns = product.columns
    replaced, operation = [product.node], QUANTIZED_LINEAR
    add = _only_reader(product.node)
    bias = None if add is None else _bias(model, add, product.node.outputs[0], columns)
    if add is not None and bias is not None:
        replaced.append(add)
        after = _only_reader(add)
        if (
            after is not None
            and after.op_type == "Gelu"
            and after.attributes.get_string("approximate", "none") == "none"
        ):
            replaced.append(after)
            operation = QUANTIZED_LINEAR_GELU
    else:
        bias = _no_bias(model, columns)
    last = replaced[-1].outputs[0]
    output = ir.Value(name=last.name, shape=last.shape, type=last.type)
    node = ir.node(operation, [product.activations, weight, scale, bias], domain=DOMAIN, outputs=[output])
    node.name = product.node.name  # that of the weight would not be unique
    last.name = None
    ir.convenience.replace_nodes_and_values(model.graph, replaced[-1], replaced, [node], [last], [output])


def _another(model: ir.Model, weight: ir.Value) -> ir.Value:
    """The same integers under another name: ONNX Runtime's exact products (`EXACT_INTEGERS`) fail on shared ones."""
    tensor = weight.const_value
    assert tensor is not None
    names = (f"{weight.name}.{number}" for number in count(2))
    name = next(name for name in names if name not in model.graph.initializers)

    def values() -> Any:
        return ir.Tensor(tensor.numpy(), name=name)

    return register_weight(model, ir.LazyTensor(values, tensor.dtype, ir.Shape(tensor.shape.numpy()), name=name))


def _only_reader(node: ir.Node) -> ir.Node | None:
    """The node that reads the output, if it is one and the output is none of the graph's."""
    output = node.outputs[0]
    readers = output.consumers()
    return readers[0] if len(readers) == 1 and not output.is_graph_output() else None


def _bias(model: ir.Model, add: ir.Node, product: ir.Value, columns: int) -> ir.Value | None:
    """What an Add adds to a product, if it is a bias: an initializer with a number for each column."""
    if add.op_type != "Add" or add.domain:
        return None
    other = next((value for value in add.inputs if value is not None and value is not product), None)
    if other is None or other.name not in model.graph.initializers or other.const_value is None:
        return None
    return other if tuple(other.const_value.shape.numpy()) == (columns,) else None


def _no_bias(model: ir.Model, columns: int) -> ir.Value:
    name = f"no_bias.{columns}"
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    return register_weight(model, ir.Tensor(np.zeros(columns, np.float32), name=name))
