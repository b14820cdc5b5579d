"""ONNX files with more to see: values inside the graph made outputs, and pieces of a graph cut out."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from madtp.ops.spec import DOMAIN, TOKEN_COMPACT

IDS_OUTPUT = [output.name for output in TOKEN_COMPACT.outputs].index("compacted_ids")
SOURCE_IDS = "source_ids_"  # and a number in the order of the graph: what the exporter calls these outputs
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class OnnxGraph:
    """An ONNX graph whose large weights may lie in another file.

    Attributes:
        model: external weights not loaded.
        folder: where they lie.
    """

    model: onnx.ModelProto
    folder: Path

    @classmethod
    def read(cls, path: Path) -> "OnnxGraph":
        """A file that an export wrote."""
        return cls(onnx.load(str(path), load_external_data=False), path.parent)

    def weight(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """An initializer with its data inside."""
        if not uses_external_data(tensor):
            return tensor
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        load_external_data_for_tensor(copy, str(self.folder))
        copy.ClearField("external_data")
        copy.data_location = onnx.TensorProto.DEFAULT
        return copy


def run_graph(graph: OnnxGraph, inputs: Mapping[str, NDArray[Any]], outputs: Iterable[str]) -> Arrays:
    """Run a graph once in ONNX Runtime, as it is written: nothing fused.

    Args:
        graph: to read.
        inputs: by name; ones that the graph does not take are ignored.
        outputs: to return, of the graph's.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = open_graph(graph, options)
    names = list(outputs)
    taken = {value.name for value in session.get_inputs()}
    values = session.run(names, {name: array for name, array in inputs.items() if name in taken})
    return dict(zip(names, values, strict=True))


def open_graph(graph: OnnxGraph, options: Any = None) -> Any:
    """A session of ONNX Runtime on the CPU.

    Args:
        graph: to run.
        options: ONNX Runtime's `SessionOptions`; None is as usual.
    """
    import onnxruntime

    options = options or onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.folder))
    return onnxruntime.InferenceSession(graph.model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def with_outputs(graph: OnnxGraph, names: Iterable[str]) -> OnnxGraph:
    """A copy in which values inside the graph are outputs too."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    there = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    return OnnxGraph(model, graph.folder)


def kept_ids(graph: OnnxGraph) -> list[str]:
    """The values that are the source ids of the tokens kept, of every layer that prunes, in the order of the graph.

    They are outputs of TokenCompact nodes; where function bodies stand in their place, the names tell them.
    """
    nodes = [
        node for node in graph.model.graph.node if (node.domain, node.op_type) == (DOMAIN, TOKEN_COMPACT.onnx_name)
    ]
    if nodes:
        return [node.output[IDS_OUTPUT] for node in nodes]
    names = [name for name in producers(graph) if re.fullmatch(rf"{SOURCE_IDS}\d+", name)]
    return sorted(names, key=lambda name: int(name.removeprefix(SOURCE_IDS)))


def producers(graph: OnnxGraph) -> dict[str, onnx.NodeProto]:
    """The node that makes each value."""
    return {name: node for node in graph.model.graph.node for name in node.output if name}


def cut(graph: OnnxGraph, node: onnx.NodeProto, known: Mapping[str, NDArray[Any]]) -> OnnxGraph:
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
