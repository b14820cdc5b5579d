"""Which values of a graph are the source ids of the tokens that its layers keep."""

import re

from export.graph.onnx_graph import OnnxGraph, producers
from madtp.ops.spec import DOMAIN, PACKED_COMPACT, TOKEN_COMPACT

IDS_OUTPUT = [output.name for output in TOKEN_COMPACT.outputs].index("compacted_ids")  # of PackedTokenCompact, too
COMPACTIONS = (TOKEN_COMPACT.onnx_name, PACKED_COMPACT.onnx_name)
SOURCE_IDS = "source_ids_"  # and a number in the order of the graph: what the exporter calls these outputs


def is_source_ids(name: str) -> bool:
    """Whether a value is the source ids of a layer's tokens, by its name."""
    return re.fullmatch(rf"{SOURCE_IDS}\d+", name) is not None


def kept_ids(graph: OnnxGraph) -> list[str]:
    """The values that are the source ids of the tokens kept, of every layer that prunes, in the order of the graph.

    They are outputs of nodes that compact tokens; where function bodies stand in their place, the names tell them.
    """
    nodes = [node for node in graph.model.graph.node if node.domain == DOMAIN and node.op_type in COMPACTIONS]
    if nodes:
        return [node.output[IDS_OUTPUT] for node in nodes]
    names = filter(is_source_ids, producers(graph))
    return sorted(names, key=lambda name: int(name.removeprefix(SOURCE_IDS)))
