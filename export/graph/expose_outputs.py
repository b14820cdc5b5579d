"""Graph pass: values inside a graph become outputs."""

from collections.abc import Iterable

import onnx


def expose_outputs(model: onnx.ModelProto, names: Iterable[str]) -> bytes:
    """A model as its file, with the values `names` as outputs too.

    Protobuf merges messages that follow each other, so nothing of the model, which may hold its weights, is copied.
    """
    known = {value.name for value in model.graph.output}
    outputs = [onnx.ValueInfoProto(name=name) for name in names if name not in known]
    return model.SerializeToString() + onnx.ModelProto(graph=onnx.GraphProto(output=outputs)).SerializeToString()
