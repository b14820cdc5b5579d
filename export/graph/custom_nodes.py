"""The custom nodes of an ONNX file."""

from collections import Counter
from pathlib import Path

import onnx

from madtp.ops.spec import DOMAIN


def custom_nodes(source: Path) -> dict[str, int]:
    """Nodes of each custom op in an ONNX file."""
    graph = onnx.load(str(source), load_external_data=False).graph
    return dict(Counter(node.op_type for node in graph.node if node.domain == DOMAIN))
