"""Defects of artifacts: a changed weight or node, with a manifest that knows of it or not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export.artifact.reader import manifest_path
from madtp.files.inputs import sha256
from tests.helpers.manifests import edit_manifest


def rehash(artifact: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change the artifact and let the manifest say so, as a defective export would."""
    model = onnx.load(str(artifact))
    change(model)
    onnx.save(model, str(artifact))
    edit(artifact, lambda manifest: manifest["parts"][0].update(sha256=sha256(artifact)))


def edit(artifact: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit_manifest(manifest_path(artifact), change)


def change_weight(model: onnx.ModelProto, name: str = "cls_head.2.bias", by: float = 0.01) -> None:
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    values = onnx.numpy_helper.to_array(tensor) + np.float32(by)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))


def node_of(graph: onnx.GraphProto | onnx.FunctionProto, op: str, index: int = 0) -> onnx.NodeProto:
    return [node for node in graph.node if node.op_type == op][index]


def change_first_value(graph: onnx.GraphProto, name: str) -> None:
    (tensor,) = (tensor for tensor in graph.initializer if tensor.name == name)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[0] += 0.01
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))


def change_matmul(graph: onnx.GraphProto) -> onnx.NodeProto:
    weights = {tensor.name for tensor in graph.initializer}
    node = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights][4]
    change_first_value(graph, node.input[1])
    return node


def change_epsilon(graph: onnx.GraphProto) -> onnx.NodeProto:
    node = node_of(graph, "LayerNormalization", 1)
    (epsilon,) = (attribute for attribute in node.attribute if attribute.name == "epsilon")
    epsilon.f = 1e-2
    return node


def change_layer(graph: onnx.GraphProto) -> onnx.NodeProto:
    node = node_of(graph, "TokenCompact")
    (layer,) = (attribute for attribute in node.attribute if attribute.name == "layer")
    layer.i += 1
    return node


def swap_op(graph: onnx.GraphProto) -> onnx.NodeProto:
    node = node_of(graph, "Gelu")
    node.op_type = "Relu"
    del node.attribute[:]
    return node


def swap_inputs(graph: onnx.GraphProto) -> onnx.NodeProto:
    """The attention of a layer reads the residual of another place."""
    node = node_of(graph, "LayerNormalization", 2)
    node.input[0] = node_of(graph, "LayerNormalization", 1).input[0]
    return node


def change_attention(graph: onnx.GraphProto) -> onnx.NodeProto:
    node = node_of(graph, "AlignedAttention", 1)
    (causal,) = (attribute for attribute in node.attribute if attribute.name == "causal")
    causal.i = 1
    return node


def insert_node(graph: onnx.GraphProto) -> onnx.NodeProto:
    """A value of another name is scaled on its way: the node that takes it is named, cut out with it."""
    node = node_of(graph, "Softmax")
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(1.1, np.float32), "factor"))
    index = list(graph.node).index(node)
    graph.node.insert(index, onnx.helper.make_node("Mul", [node.input[0], "factor"], ["scaled"], "inserted"))
    graph.node[index + 1].input[0] = "scaled"
    return graph.node[index + 1]


MUTATIONS = (change_matmul, change_epsilon, change_layer, swap_op, swap_inputs, change_attention, insert_node)
