"""An ONNX graph in memory, its weights where they lie, and ONNX Runtime on it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

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


def producers(graph: OnnxGraph) -> dict[str, onnx.NodeProto]:
    """The node that makes each value."""
    return {name: node for node in graph.model.graph.node for name in node.output if name}
