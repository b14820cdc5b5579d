"""Graph pass: function bodies in the place of the custom nodes, so that a file is standard ONNX."""

from pathlib import Path

import onnx
import onnx.inliner
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from export.graph.source_ids import is_source_ids
from madtp.ops.spec import DOMAIN

LARGEST_FOLDED = 4096  # bytes of a constant that folding reads or makes: shapes and branches, no weights


def inline_functions(source: Path, target: Path) -> None:
    """Write `source` as standard ONNX: custom nodes replaced by their bodies, their domain gone; weights stay put.

    What is left over in the bodies goes too: branches not taken, shapes that are known or computed twice, masks that
    nothing reads. Source ids stay, for those who ask which tokens were kept.

    Both files have to lie in one folder (and may be one), because the external weights are named relative to it.
    """
    inlined = onnx.inliner.inline_local_functions(onnx.load(str(source), load_external_data=False))
    left = [node.op_type for node in inlined.graph.node if node.domain == DOMAIN]
    assert not left, f"not inlined: {left}"
    opsets = [opset for opset in inlined.opset_import if opset.domain != DOMAIN]
    del inlined.opset_import[:]
    inlined.opset_import.extend(opsets)
    model = ir.from_proto(inlined)
    ir.external_data.set_base_dir(model.graph, source.parent)
    _tidy(model)
    onnx.save(ir.to_proto(model), str(target))


def _tidy(model: ir.Model) -> None:
    outputs = list(model.graph.outputs)
    ids = [value for node in model.graph for value in node.outputs if is_source_ids(value.name or "")]
    model.graph.outputs.extend(value for value in ids if value not in outputs)
    optimizer.fold_constants(
        model, onnx_shape_inference=True, input_size_limit=LARGEST_FOLDED, output_size_limit=LARGEST_FOLDED
    )
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    model.graph.outputs[:] = outputs
