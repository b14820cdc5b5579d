"""An ONNX graph in memory, its weights where they lie, and ONNX Runtime on it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from export.graph.expose_outputs import expose_outputs

Arrays = dict[str, NDArray[Any]]
# A session's entry: unless it is "1", ONNX Runtime adds products of uint8 and int8 in 16 bits on processors without
# VNNI, where they saturate; elsewhere it changes nothing (onnxruntime_session_options_config_keys.h).
EXACT_INTEGERS = "session.x64quantprecision"
# With it, ONNX Runtime 1.32 refuses files where two products share a weight, as tools for quantization write.
_SHARED_WEIGHT = "Attempt to replace the existing tensor"


@dataclass(frozen=True)
class OnnxGraph:
    """An ONNX graph; its external weights are not loaded, they lie in `folder`."""

    model: onnx.ModelProto
    folder: Path

    @classmethod
    def read(cls, path: Path) -> "OnnxGraph":
        """A file that an export wrote."""
        return cls(onnx.load(str(path), load_external_data=False), path.parent)

    @property
    def float16_inputs(self) -> set[str]:
        """Names of the inputs that are of float16."""
        return {
            value.name
            for value in self.model.graph.input
            if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
        }

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
    """Any values of a graph, run once in ONNX Runtime, nothing fused; inputs that it does not take are ignored."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    names = list(outputs)
    session = open_graph(graph, options, names)
    taken = {value.name for value in session.get_inputs()}
    values = session.run(names, {name: array for name, array in inputs.items() if name in taken})
    return dict(zip(names, values, strict=True))


def open_graph(
    graph: OnnxGraph,
    options: Any = None,
    exposed: Iterable[str] = (),
    providers: Sequence[Any] = ("CPUExecutionProvider",),
) -> Any:
    """A session of ONNX Runtime, with its `SessionOptions` and the values `exposed` as outputs too."""
    import onnxruntime

    options = options or onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.folder))
    content = expose_outputs(graph.model, exposed)
    session = open_session(content, options, providers)
    session._model_bytes = None  # kept for a change of providers, and may hold all weights once more
    return session


def open_session(content: str | bytes, options: Any, providers: Sequence[Any]) -> Any:
    """A session of ONNX Runtime on a file's name or content, without fallback from a GPU to a CPU."""
    import onnxruntime

    def opened(precision: str) -> Any:
        options.add_session_config_entry(EXACT_INTEGERS, precision)
        return onnxruntime.InferenceSession(content, options, providers=list(providers), enable_fallback=0)

    try:
        return opened("1")
    except Exception as error:  # they have no common type
        if _SHARED_WEIGHT not in str(error):
            raise
        return opened("0")


def producers(graph: OnnxGraph) -> dict[str, onnx.NodeProto]:
    """The node that makes each value."""
    return {name: node for node in graph.model.graph.node for name in node.output if name}


def visible_producers(graph: OnnxGraph) -> dict[str, onnx.NodeProto]:
    """The same without values in bfloat16, which numpy does not have."""
    return {name: node for name, node in producers(graph).items() if not _makes_bfloat16(node)}


def _makes_bfloat16(node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and any(entry.i == onnx.TensorProto.BFLOAT16 for entry in node.attribute)
