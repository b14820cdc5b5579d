"""ONNX files in other floating-point types, retyped from one trace, because tracing takes most of the time."""

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, numpy_helper

TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def retype(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """A copy of a float16 model (weights inside) with every float16 in it turned into `precision`.

    Its float32 islands stay: they were float32 in the trace.
    """
    wanted = TYPES[precision]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _retype_graph(copy.graph, wanted)
    return copy


def _retype_graph(graph: GraphProto, wanted: int) -> None:
    for tensor in graph.initializer:
        _retype_tensor(tensor, wanted)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = wanted
    _retype_nodes(graph.node, wanted)


def _retype_nodes(nodes: Iterable[NodeProto], wanted: int) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _retype_tensor(attribute.t, wanted)
            elif attribute.type == AttributeProto.GRAPH:
                _retype_graph(attribute.g, wanted)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = wanted


def _retype_tensor(tensor: TensorProto, wanted: int) -> None:
    if tensor.data_type != TensorProto.FLOAT16 or wanted == TensorProto.FLOAT16:
        return
    values = numpy_helper.to_array(tensor).astype(onnx.helper.tensor_dtype_to_np_dtype(wanted))
    fresh = TensorProto(name=tensor.name, data_type=wanted, dims=tensor.dims)
    fresh.raw_data = np.ascontiguousarray(values).tobytes()
    tensor.CopyFrom(fresh)
