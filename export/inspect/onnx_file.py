"""The contents of any ONNX file. Nothing is run; external weights stay unread."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from export.artifact.onnx_file import MOST_BYTES, all_tensors, decoded, parse_onnx
from export.errors import ManifestError
from madtp.files.inputs import read_bytes

LONGEST_SIZE = 20  # digits; no file is longer


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX model.

    Attributes:
        opsets: domain -> version; the domain "" is ONNX's own.
        inputs, outputs: [{"name", "dtype", "shape"}], without the weights that older files list as inputs.
        nodes: number of nodes of the graph and its subgraphs.
        operators: "domain::op", or "op" of ONNX's own domain -> nodes, function bodies included.
        functions: operators that the file defines.
        external: file name -> "found", or what is wrong with it.
    """

    producer: str
    ir_version: int
    opsets: dict[str, int]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    nodes: int
    operators: dict[str, int]
    functions: list[str]
    weights: int
    external: dict[str, str] = field(default_factory=dict)

    @property
    def custom(self) -> dict[str, int]:
        """Operators that are not of ONNX's own domain."""
        return {name: count for name, count in self.operators.items() if "::" in name}


def read_onnx(path: Path) -> OnnxFile:
    """Read the graph of an ONNX file.

    Raises:
        ManifestError: it is not an ONNX model, is truncated, or is larger than one can be.
        OSError: it cannot be read.
    """
    try:
        content = read_bytes(path, MOST_BYTES)
    except ValueError as error:
        raise ManifestError(f"'{path.name}' is not an ONNX model", str(error)) from error
    model = parse_onnx(content, path)
    if not model.ir_version or not model.HasField("graph") or not model.opset_import:
        found = {"IR version": model.ir_version, "graph": model.HasField("graph"), "opset": model.opset_import}
        lacking = [name for name, value in found.items() if not value]
        raise ManifestError(
            f"'{path.name}' is not a complete ONNX model",
            f"It has no {', '.join(lacking)}: truncated, or another file.",
        )
    try:
        return _describe(model, path.parent)
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"'{path.name}' is not a complete ONNX model", "A name in it is not UTF-8: it is damaged."
        ) from error


def _describe(model: Any, folder: Path) -> OnnxFile:
    nodes = list(_nodes(model.graph.node))
    inner = [node for function in model.functions for node in _nodes(function.node)]
    counts = Counter(_operator(node.domain, node.op_type) for node in [*nodes, *inner])
    weights = list(_weights(model.graph))
    names = {decoded(weight.name) for weight in weights}
    return OnnxFile(
        f"{decoded(model.producer_name)} {decoded(model.producer_version)}".strip(),
        model.ir_version,
        {decoded(entry.domain): entry.version for entry in model.opset_import},
        [_tensor(value) for value in model.graph.input if decoded(value.name) not in names],
        [_tensor(value) for value in model.graph.output],
        len(nodes),
        dict(counts.most_common()),
        [_operator(function.domain, function.name) for function in model.functions],
        len(weights),
        _external(all_tensors(model), folder),
    )


def _operator(domain: str, name: str) -> str:
    return f"{decoded(domain)}::{decoded(name)}" if domain not in ("", "ai.onnx") else decoded(name)


def _nodes(nodes: Iterable[Any]) -> Iterator[Any]:
    for node in nodes:
        yield node
        for graph in _subgraphs(node):
            yield from _nodes(graph.node)


def _subgraphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _weights(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
        for subgraph in _subgraphs(node):
            yield from _weights(subgraph)


def _tensor(value: Any) -> dict[str, Any]:
    from onnx.helper import tensor_dtype_to_np_dtype

    kind, name = value.type.WhichOneof("value"), decoded(value.name)
    if kind != "tensor_type":
        return {"name": name, "dtype": (kind or "unknown").removesuffix("_type"), "shape": None}
    tensor = value.type.tensor_type
    try:
        dtype = tensor_dtype_to_np_dtype(tensor.elem_type).name
    except KeyError:
        dtype = f"type {tensor.elem_type}"
    shape = [dim.dim_value if dim.HasField("dim_value") else decoded(dim.dim_param) or "?" for dim in tensor.shape.dim]
    return {"name": name, "dtype": dtype, "shape": shape if tensor.HasField("shape") else None}


def _external(weights: Iterable[Any], folder: Path) -> dict[str, str]:
    """The files that hold weights, and whether each is there and long enough."""
    ends: dict[str, int] = {}
    for weight in weights:
        if weight.data_location != weight.EXTERNAL:
            continue
        fields = {decoded(entry.key): decoded(entry.value) for entry in weight.external_data}
        numbers = [fields.get(key, "0") for key in ("offset", "length")]
        end = sum(int(number[:LONGEST_SIZE]) if number.isdecimal() else 0 for number in numbers)
        location = fields.get("location", "")
        ends[location] = max(ends.get(location, 0), end)
    return {name: _external_state(name, end, folder) for name, end in ends.items()}


def _external_state(name: str, end: int, folder: Path) -> str:
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or PurePosixPath(name).is_absolute():
        return "outside the folder of the model, not looked for"
    try:
        path = folder / name
        if not path.is_file():
            return "missing"
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        return f"cannot be read ({error})"
    return "found" if size >= end else f"truncated: {size} bytes, the model needs {end}"
