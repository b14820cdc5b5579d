"""The custom nodes of an ONNX file."""

from collections import Counter
from pathlib import Path

import onnx

from madtp.ops.spec import DOMAIN


def custom_nodes(source: Path) -> dict[str, int]:
    """Nodes of each custom op in an ONNX file."""
    graph = onnx.load(str(source), load_external_data=False).graph
    return dict(Counter(node.op_type for node in graph.node if node.domain == DOMAIN))


def custom_types(source: Path) -> set[str]:
    """The types that the custom nodes of an ONNX file compute in, e.g. "float16"; "undefined" where it does not say.

    Their first input, queries or tokens, is of that type.
    """
    graph = onnx.load(str(source), load_external_data=False).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    undefined = onnx.TensorProto.UNDEFINED
    found = {types.get(node.input[0], undefined) for node in graph.node if node.domain == DOMAIN}
    names = {onnx.TensorProto.FLOAT: "float32"}
    return {names.get(number, onnx.TensorProto.DataType.Name(number).lower()) for number in found}
