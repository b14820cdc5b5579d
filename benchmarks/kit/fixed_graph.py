"""A packed graph for one batch size and one set of rooms, all sizes of which are numbers.

ONNX Runtime captures a session into a CUDA graph if every node runs on the CUDA provider and nothing is copied between
it and the host. Sizes computed while it runs are computed on the host, and it knows none behind nodes of ours; with all
of them in the file it folds what computes them into constants. Its CUDA provider has no Clip of int32, and no ReduceMax
of opset 20 (its docs/OperatorKernels.md, of which a kernel without a last version serves its first alone): Min and
ReduceSum take their places, so that the output of overflows is how many layers had too little room.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import sympy

from export.graph.capacities import set_capacities
from madtp.ops.spec import PACKED_COMPACT


def fix_sizes(source: Path, target: Path, rows: Mapping[str, Sequence[int]], sizes: Mapping[str, int]) -> None:
    """Write a packed graph whose layers have room for all that comes in with this room, and these sizes of inputs.

    Args:
        source, target: ONNX files in one folder, because external weights are named relative to it.
        rows: of each encoder's layers, encoders in the order in which they run.
        sizes: of the dimensions that vary, by name.
    """
    set_capacities(source, target, rows)
    before = onnx.load(str(source), load_external_data=False).graph
    model = onnx.load(str(target), load_external_data=False)
    known = dict(sizes)
    dims = {value.name: value for value in before.value_info}
    layers = [node for node in before.node if node.op_type == PACKED_COMPACT.onnx_name]
    for node, room in zip(layers, [room for layers in rows.values() for room in layers], strict=True):
        known |= _solved(dims[node.output[0]].type.tensor_type.shape.dim[0].dim_param, room)
    fixed = {value.name: value for value in (*before.input, *before.output, *before.value_info)}
    for values in (model.graph.input, model.graph.output, model.graph.value_info):
        for value in values:
            if value.type.tensor_type.HasField("shape") or value.name in dims:
                value.CopyFrom(_numbered(fixed[value.name], known))
    for node in model.graph.node:
        if node.op_type == "Clip" and not node.input[1]:
            node.op_type = "Min"
            del node.input[1]
        elif node.op_type == "ReduceMax":
            node.op_type = "ReduceSum"
    onnx.save(model, str(target))


def _solved(expression: str, value: int) -> dict[str, int]:
    """The symbol of an expression like "2*u0" that has this value."""
    parsed = sympy.parse_expr(expression)
    (symbol,) = parsed.free_symbols
    (solution,) = sympy.solve(parsed - value, symbol)
    assert solution.is_Integer, f"{expression} = {value}"
    return {symbol.name: int(solution)}


def _numbered(value: onnx.ValueInfoProto, known: Mapping[str, int]) -> onnx.ValueInfoProto:
    """With numbers for names; a name that is not known stays."""
    numbered = onnx.ValueInfoProto()
    numbered.CopyFrom(value)
    for dim in numbered.type.tensor_type.shape.dim:
        if dim.dim_param:
            size = sympy.sympify(sympy.parse_expr(dim.dim_param, local_dict=dict(known)))
            if size.is_Integer:
                dim.dim_value = int(size)
    return numbered
