"""Graph pass: a bfloat16 graph as one that computes in float32 and rounds, for runtimes that lack its kernels.

Of float16, ONNX Runtime's CPU has kernels, or casts by itself. Of bfloat16 it has none that compute, and refuses the
file. In this form the weights are held in bfloat16, and every value between two nodes is what the bfloat16 graph has
there; only inside of the custom ops' bodies nothing is rounded.
"""

from collections.abc import Sequence

from onnxscript import ir

from export.graph.functions import OPSET
from export.graph.half_precision import insert_cast, set_opset

# Ops that only move values, which stay rounded, or clear them.
MOVES = ("Concat", "Expand", "Gather", "Relu", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")


def round_bfloat16(model: ir.Model) -> None:
    """Change a graph of `half_precision` in "bf16", whose inputs and outputs are float32."""
    graph = model.graph
    set_opset(model, OPSET)
    weights = [value for value in graph.initializers.values() if value.dtype == ir.DataType.BFLOAT16]
    values = [value for node in graph for value in node.outputs if value.dtype == ir.DataType.BFLOAT16]
    for weight in weights:
        # A Cast of the bfloat16 graph makes float32 of it already.
        uses = [use for use in weight.uses() if use[0].op_type != "Cast"]
        _replace(uses, insert_cast(graph, weight, ir.DataType.FLOAT, f"{weight.name}.rounded"))
    for value in values:
        node, uses = value.producer(), list(value.uses())
        assert node is not None
        value.dtype = ir.DataType.FLOAT
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
        if node.op_type not in MOVES:
            narrow = insert_cast(graph, value, ir.DataType.BFLOAT16)
            _replace(uses, insert_cast(graph, narrow, ir.DataType.FLOAT, f"{value.name}.rounded"))


def _replace(uses: Sequence[tuple[ir.Node, int]], value: ir.Value) -> None:
    for node, index in uses:
        node.replace_input_with(index, value)
