"""The op library: stand-ins that carry a build line and nothing else, the real one, and files of a single custom op."""

import json
from functools import cache
from importlib import metadata
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from export.engine.op_library import OpLibrary, installed_library, loadable_op_library
from export.engine.plugin_build import build_library
from export.graph.functions import BIASED, OPSET, functions
from madtp.files.native import source_hash
from madtp.ops.spec import ALIGNED_ATTENTION, DOMAIN, FLOAT, VERSION, OpSpec

TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int64": TensorProto.INT64}
OWN_VERSION = metadata.version("madtp-deploy")


def stand_in(path: Path, version: str = OWN_VERSION, source: str | None = None, sm: str = "80,89") -> Path:
    """A file that passes for an op library as long as nobody loads it."""
    mark = {"version": version, "source": source_hash() if source is None else source, "sm": sm}
    path.write_bytes(b"\x7fELF... madtp-onnxruntime " + json.dumps(mark).encode() + b"\0")
    return path


@cache
def real_library() -> OpLibrary:
    """The library of this checkout, built if it has to be."""
    build_library()
    path = installed_library()
    assert path is not None
    return loadable_op_library(path)


def write_op(spec: OpSpec, path: Path, data_type: int = TensorProto.FLOAT, **attributes: int) -> Path:
    """A file of one custom node, whose inputs may have any sizes of the right rank."""
    types = {**TYPES, FLOAT: data_type}
    inputs, outputs = (
        [helper.make_tensor_value_info(one.name, types[one.dtype], [None] * len(one.dims)) for one in tensors]
        for tensors in (spec.inputs, spec.outputs)
    )
    given = {BIASED: 1, **attributes} if spec is ALIGNED_ATTENTION else attributes
    names = [[one.name for one in tensors] for tensors in (spec.inputs, spec.outputs)]
    node = helper.make_node(spec.onnx_name, *names, domain=DOMAIN, **given)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    graph = helper.make_graph([node], "one", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=functions(), ir_version=10), str(path))
    return path
