"""Graph pass for ONNX Runtime's CPU: weight products in the form that it computes fastest.

Patches become rows of a matrix product, which is faster than a convolution whose windows do not overlap, and which can
be quantized dynamically. Products of one value that are put side by side anyway (BERT's query, key and value) become
one.
"""

from typing import Any

import numpy as np
from onnx_ir.passes import common
from onnxscript import ir

from export.graph.quantized_weight import register_weight, remove_unused_weights
from export.graph.trace import TRANSPOSED
from madtp.models.weight_products import JOINED


def fuse_products(model: ir.Model) -> None:
    """Rewrite the products of a traced float32 graph; weights are computed when the file is written."""
    for node in list(model.graph):
        if node.op_type == "Conv":
            _multiply_patches(model, node)
        elif node.op_type == "Concat":
            _join_products(model, node)
    common.RemoveUnusedNodesPass()(model)
    remove_unused_weights(model)


def _multiply_patches(model: ir.Model, conv: ir.Node) -> None:
    """Conv -> [B, C, patches] -> [B, patches, C], as patches [B, patches, 3 P P] times the weight."""
    image, weight = conv.inputs[0], conv.inputs[1]
    assert image is not None
    assert weight is not None
    last = _transposed_patches(conv)
    tensor, kernel = weight.const_value, conv.attributes.get_ints("kernel_shape")
    if last is None or tensor is None or image.shape is None or kernel is None:
        return
    channels, side = image.shape[1], image.shape[2]
    plain = conv.attributes.get_ints("strides") == kernel and not any(conv.attributes.get_ints("pads") or ())
    if not plain or conv.attributes.get_int("group", 1) != 1 or len(kernel) != 2 or kernel[0] != kernel[1]:
        return
    if not isinstance(side, int) or image.shape[3] != side or side % kernel[0]:
        return
    patch, grid = kernel[0], side // kernel[0]
    name = f"{weight.name}{TRANSPOSED}"
    matrix = _lazy(
        name, (channels * patch**2, tensor.shape[0]), lambda: tensor.numpy().reshape(len(tensor.numpy()), -1).T
    )
    nodes = _Nodes(str(last.name))
    windows = nodes.add("Reshape", image, _shape(model, f"{name}.windows", [-1, channels, grid, patch, grid, patch]))
    by_patch = nodes.add("Transpose", windows, perm=[0, 2, 4, 1, 3, 5])
    rows = nodes.add("Reshape", by_patch, _shape(model, f"{name}.rows", [-1, grid**2, channels * patch**2]))
    product = nodes.add("MatMul", rows, register_weight(model, matrix))
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    _replace(model, last, nodes, product if bias is None else nodes.add("Add", product, bias))


def _transposed_patches(conv: ir.Node) -> ir.Value | None:
    """What the patches of a Conv are in the end, [B, patches, C]."""
    value = conv.outputs[0]
    for op_type in ("Reshape", "Transpose"):
        users = [usage.node for usage in value.uses()]
        if len(users) != 1 or users[0].op_type != op_type:
            return None
        value = users[0].outputs[0]
    return value


def _join_products(model: ir.Model, concat: ir.Node) -> None:
    """Concat of x W1 + b1, x W2 + b2, ... -> x [W1, W2, ...] + [b1, b2, ...]."""
    pairs = [_biased_product(value) for value in concat.inputs]
    found = [pair for pair in pairs if pair is not None]
    if len(found) != len(pairs) or len({product.inputs[0] for product, _ in found}) != 1:
        return
    weights = [product.inputs[1] for product, _ in found]
    matrices = [None if weight is None else weight.const_value for weight in weights]
    offsets = [bias.const_value for _, bias in found]
    rank = 0 if matrices[0] is None else len(matrices[0].shape)
    if rank != 2 or concat.attributes.get_int("axis") not in (-1, 2):
        return
    tensors, biases = [m for m in matrices if m is not None], [b for b in offsets if b is not None]
    if len(tensors) != len(pairs) or len(biases) != len(pairs):
        return
    local = [str(weight.name).removesuffix(TRANSPOSED) for weight in weights if weight is not None]
    width = sum(tensor.numpy().shape[1] for tensor in tensors)
    name = JOINED.join(local)
    weight = _lazy(
        f"{name}{TRANSPOSED}",
        (tensors[0].shape[0], width),
        lambda: np.concatenate([tensor.numpy() for tensor in tensors], axis=1),
    )
    bias = ir.Tensor(np.concatenate([tensor.numpy() for tensor in biases]), name=f"{name}.bias")
    nodes = _Nodes(str(concat.outputs[0].name))
    source = found[0][0].inputs[0]
    assert source is not None
    product = nodes.add("MatMul", source, register_weight(model, weight))
    _replace(model, concat.outputs[0], nodes, nodes.add("Add", product, register_weight(model, bias)))


def _biased_product(value: ir.Value | None) -> tuple[ir.Node, ir.Value] | None:
    """The MatMul and the bias of x W + b that only one node reads."""
    add = None if value is None or len(value.uses()) != 1 else value.producer()
    if add is None or add.op_type != "Add":
        return None
    for product, bias in (add.inputs, add.inputs[::-1]):
        node = None if product is None else product.producer()
        weight = None if node is None or node.op_type != "MatMul" else node.inputs[1]
        if node is not None and weight is not None and weight.const_value is not None and bias is not None:
            return node, bias
    return None


class _Nodes:
    """New nodes that together make what the value `name` was."""

    def __init__(self, name: str) -> None:
        self._name, self.nodes = name, list[ir.Node]()

    def add(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        output = ir.Value(name=f"{self._name}.{len(self.nodes)}")
        self.nodes.append(ir.node(op_type, list(inputs), attributes, outputs=[output]))
        return output


def _replace(model: ir.Model, old: ir.Value, nodes: _Nodes, new: ir.Value) -> None:
    """Put `new`, which the last of `nodes` makes, in the place of `old`."""
    maker = old.producer()
    assert maker is not None
    new.shape, new.type, new.name, old.name = old.shape, old.type, old.name, None
    ir.convenience.replace_nodes_and_values(model.graph, maker, [maker], nodes.nodes, [old], [new])


def _lazy(name: str, shape: tuple[Any, ...], values: Any) -> ir.LazyTensor:
    """A float32 weight that is computed when it is written."""
    return ir.LazyTensor(
        lambda: ir.Tensor(np.ascontiguousarray(values()), name=name), ir.DataType.FLOAT, ir.Shape(shape), name=name
    )


def _shape(model: ir.Model, name: str, sizes: list[Any]) -> ir.Value:
    return register_weight(model, ir.Tensor(np.array(sizes, np.int64), name=name))
