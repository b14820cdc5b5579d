"""Graph pass: the token counts that TensorRT is told, as attributes of the TokenCompact nodes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from export.artifact.manifest import TokenSizes
from madtp.ops.spec import TOKEN_COMPACT


def set_token_sizes(source: Path, target: Path, sizes: Mapping[str, Sequence[TokenSizes]]) -> None:
    """Write `source` with the attributes `opt_tokens` and `max_tokens` on every TokenCompact node.

    Args:
        source, target: ONNX files in one folder, because external weights are named relative to it.
        sizes: of each encoder's layers, encoders in the order in which they run.
    """
    model = onnx.load(str(source), load_external_data=False)
    nodes = [node for node in model.graph.node if node.op_type == TOKEN_COMPACT.onnx_name]
    wanted = [(layer, size) for layers in sizes.values() for layer, size in enumerate(layers)]
    for node, (layer, size) in zip(nodes, wanted, strict=True):
        assert {entry.name: entry.i for entry in node.attribute}["layer"] == layer, "encoders run in another order"
        node.attribute.append(onnx.helper.make_attribute("opt_tokens", size.opt))
        node.attribute.append(onnx.helper.make_attribute("max_tokens", size.max))
    onnx.save(model, str(target))
