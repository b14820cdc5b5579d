"""Graph pass: one node cut out of a graph, as a graph of its own."""

from collections.abc import Mapping
from typing import Any

import onnx
from numpy.typing import NDArray

from export.graph.onnx_graph import OnnxGraph, producers


def subgraph_of(graph: OnnxGraph, node: onnx.NodeProto, known: Mapping[str, NDArray[Any]]) -> OnnxGraph:
    """The piece of a graph that computes one node from values that are known.

    Usually that is the node alone; where an input of it is not known, what makes that input comes along.

    Args:
        graph: to read.
        node: of it.
        known: values by name; their types become those of the piece's inputs.

    Returns:
        A graph of its own, weights inside, whose inputs are known values and whose outputs are the node's.
    """
    body = graph.model.graph
    weights = {tensor.name: tensor for tensor in body.initializer}
    made_by = producers(graph)
    nodes, inputs, used = [node], set[str](), set[str]()
    waiting = [name for name in node.input if name]
    while waiting:
        name = waiting.pop()
        if name in weights:
            used.add(name)
        elif name in known:
            inputs.add(name)
        elif not any(made_by[name] is taken for taken in nodes):
            nodes.append(made_by[name])
            waiting.extend(before for before in made_by[name].input if before)
    helper = onnx.helper
    piece = helper.make_graph(
        [part for part in body.node if any(part is taken for taken in nodes)],
        node.name or node.op_type,
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(known[name].dtype), [None] * known[name].ndim
            )
            for name in sorted(inputs)
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
        [graph.weight(weights[name]) for name in sorted(used)],
    )
    model = helper.make_model(
        piece,
        opset_imports=list(graph.model.opset_import),
        functions=list(graph.model.functions),
        ir_version=graph.model.ir_version,
    )
    return OnnxGraph(model, graph.folder)
