"""Graph passes of packed graphs in which no size depends on data: room of the layers, and whether it was enough."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from onnxscript import ir

from export.artifact.manifest import OVERFLOW
from madtp.ops.spec import CAPACITY, DOMAIN, INCOMING, PACKED_COMPACT

_COMPACTED, _COUNT = ([output.name for output in PACKED_COMPACT.outputs].index(name) for name in ("compacted", "count"))


def add_overflow(model: ir.Model) -> None:
    """Add the output OVERFLOW to a graph that compacts packed tokens; others stay as they are."""
    layers = [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, PACKED_COMPACT.onnx_name)]
    if not layers:
        return
    nodes: list[ir.Node] = []

    def add(op_type: str, inputs: Sequence[ir.Value], **attributes: int) -> ir.Value:
        node = ir.node(op_type, inputs, attributes)
        node.outputs[0].name = f"{OVERFLOW}.{len(nodes)}"
        nodes.append(node)
        return node.outputs[0]

    first = ir.node("Constant", [], {"value_ints": [0]})
    first.outputs[0].name = f"{OVERFLOW}.first"
    nodes.append(first)
    needed = [add("Unsqueeze", [layer.outputs[_COUNT], first.outputs[0]]) for layer in layers]
    room = [add("Shape", [layer.outputs[_COMPACTED]], end=1) for layer in layers]
    more = add("Greater", [add("Concat", needed, axis=0), add("Concat", room, axis=0)])
    overflow = add("ReduceMax", [add("Cast", [more], to=int(ir.DataType.INT32))], keepdims=0)
    overflow.name, overflow.type, overflow.shape = OVERFLOW, ir.TensorType(ir.DataType.INT32), ir.Shape([])
    model.graph.extend(nodes)
    model.graph.outputs.append(overflow)


def set_capacities(source: Path, target: Path, rows: Mapping[str, Sequence[int]]) -> None:
    """Write `source`, whose layers have room for all that comes in, with room for as many rows as these.

    Args:
        source, target: ONNX files in one folder, because external weights are named relative to it.
        rows: of each encoder's layers, encoders in the order in which they run.
    """
    model = onnx.load(str(source), load_external_data=False)
    nodes = [node for node in model.graph.node if node.op_type == PACKED_COMPACT.onnx_name]
    wanted = [(layer, capacity) for layers in rows.values() for layer, capacity in enumerate(layers)]
    for node, (layer, capacity) in zip(nodes, wanted, strict=True):
        attributes = {entry.name: entry for entry in node.attribute}
        assert attributes["layer"].i == layer, "encoders run in another order"
        assert attributes[CAPACITY].i == INCOMING
        attributes[CAPACITY].i = capacity
    for value in model.graph.value_info:  # of numbers of rows that are not any more
        value.type.tensor_type.ClearField("shape")
    onnx.save(model, str(target))
