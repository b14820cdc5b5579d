"""Graph pass: function bodies in the place of the custom nodes, so that a file is standard ONNX."""

from pathlib import Path

import onnx
import onnx.inliner

from madtp.ops.spec import DOMAIN


def inline_functions(source: Path, target: Path) -> None:
    """Write `source` as standard ONNX: custom nodes replaced by their bodies, their domain gone; weights stay put.

    Both files have to lie in one folder (and may be one), because the external weights are named relative to it.
    """
    model = onnx.inliner.inline_local_functions(onnx.load(str(source), load_external_data=False))
    left = [node.op_type for node in model.graph.node if node.domain == DOMAIN]
    assert not left, f"not inlined: {left}"
    opsets = [opset for opset in model.opset_import if opset.domain != DOMAIN]
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    nodes = [node for node in model.graph.node if node.op_type != "Constant" or used.intersection(node.output)]
    del model.opset_import[:], model.graph.node[:]
    model.opset_import.extend(opsets)
    model.graph.node.extend(nodes)  # without the constants that a body has and does not use: runtimes warn of them
    onnx.save(model, str(target))
