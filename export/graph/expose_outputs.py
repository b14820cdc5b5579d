"""Graph pass: values inside a graph become outputs."""

from collections.abc import Iterable

import onnx

from export.graph.onnx_graph import OnnxGraph


def expose_outputs(graph: OnnxGraph, names: Iterable[str]) -> OnnxGraph:
    """A copy in which values inside the graph are outputs too."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    there = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    return OnnxGraph(model, graph.folder)
