"""ONNX files with more to see: values inside the graph made outputs, and pieces of a graph cut out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data
from torch import Tensor

from export.runner import feed
from madtp.opspec import TOKEN_COMPACT
from madtp.tasks import Outputs, Runner

IDS_OUTPUT = [output.name for output in TOKEN_COMPACT.outputs].index("compacted_ids")
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX graph whose large weights may lie in another file.

    Attributes:
        model: external weights not loaded.
        folder: where they lie.
    """

    model: onnx.ModelProto
    folder: Path

    @classmethod
    def read(cls, path: Path) -> "OnnxFile":
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


def run_graph(file: OnnxFile, inputs: Mapping[str, NDArray[Any]], outputs: Iterable[str]) -> Arrays:
    """Run a graph once in ONNX Runtime, as it is written: nothing fused.

    Args:
        file: the graph.
        inputs: by name; ones that the graph does not take are ignored.
        outputs: to return, of the graph's.
    """
    session = _session(file, optimize=False)
    names = list(outputs)
    taken = {value.name for value in session.get_inputs()}
    values = session.run(names, {name: array for name, array in inputs.items() if name in taken})
    return dict(zip(names, values, strict=True))


def _session(file: OnnxFile, optimize: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.folder))
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(file.model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def with_outputs(file: OnnxFile, names: Iterable[str]) -> OnnxFile:
    """A copy in which values inside the graph are outputs too."""
    model = onnx.ModelProto()
    model.CopyFrom(file.model)
    there = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    return OnnxFile(model, file.folder)


def kept_ids(file: OnnxFile) -> list[str]:
    """The values that are the source ids of the tokens kept, of every TokenCompact node in the order of the graph."""
    nodes = [node for node in file.model.graph.node if node.op_type == TOKEN_COMPACT.onnx_name]
    return [node.output[IDS_OUTPUT] for node in nodes]


class ShowingRunner:
    """A part's ONNX graph in ONNX Runtime; values inside it are outputs too.

    Args:
        file: the graph.
        shown: the names of these values.
    """

    def __init__(self, file: OnnxFile, shown: Iterable[str]) -> None:
        self._session = _session(with_outputs(file, shown), optimize=True)
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._outputs = [value.name for value in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        arrays = self._session.run(self._outputs, feed(inputs, temperature, self._inputs))
        return {name: torch.from_numpy(array) for name, array in zip(self._outputs, arrays, strict=True)}


class WatchedRunner:
    """A part whose source ids are put aside.

    Args:
        runner: shows them.
        names: of these values, in the order in which the layers run.

    Attributes:
        ids: of the latest call, [sequences, tokens] int32 for each layer.
    """

    def __init__(self, runner: Runner, names: Sequence[str]) -> None:
        self._runner, self._names = runner, names
        self.ids: list[Tensor] = []

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        outputs = dict(self._runner.run(inputs, temperature))
        self.ids = [outputs.pop(name) for name in self._names]
        return outputs


def producers(file: OnnxFile) -> dict[str, onnx.NodeProto]:
    """The node that makes each value."""
    return {name: node for node in file.model.graph.node for name in node.output if name}


def cut(file: OnnxFile, node: onnx.NodeProto, known: Mapping[str, NDArray[Any]]) -> OnnxFile:
    """The piece of a graph that computes one node from values that are known.

    Usually that is the node alone; where an input of it is not known, what makes that input comes along.

    Args:
        file: the graph.
        node: of it.
        known: values by name; their types become those of the piece's inputs.

    Returns:
        A graph of its own, weights inside, whose inputs are known values and whose outputs are the node's.
    """
    graph = file.model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    made_by = producers(file)
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
        [part for part in graph.node if any(part is taken for taken in nodes)],
        node.name or node.op_type,
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(known[name].dtype), [None] * known[name].ndim
            )
            for name in sorted(inputs)
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
        [file.weight(weights[name]) for name in sorted(used)],
    )
    model = helper.make_model(
        piece,
        opset_imports=list(file.model.opset_import),
        functions=list(file.model.functions),
        ir_version=file.model.ir_version,
    )
    return OnnxFile(model, file.folder)
