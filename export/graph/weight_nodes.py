"""The weight products of a traced graph: the nodes that multiply activations with weights of the checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass

from onnxscript import ir

from export.graph.trace import TRANSPOSED
from madtp.models.weight_products import JOINED

WEIGHT_INPUT = 1
OPS = ("MatMul", "Gemm", "Conv")


@dataclass(frozen=True)
class WeightNode:
    """A node of a graph and the weight products that it computes.

    Attributes:
        names: of the products, in the model; several where a pass joined them (`madtp.models.weight_products`).
    """

    node: ir.Node
    names: tuple[str, ...]

    @property
    def activations(self) -> ir.Value:
        """What is multiplied with the weight."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def weight(self) -> ir.Value:
        """The initializer."""
        value = self.node.inputs[WEIGHT_INPUT]
        assert value is not None
        return value

    @property
    def name(self) -> str:
        """Of the product, or of all that it joins."""
        return JOINED.join(self.names)

    @property
    def channel_axis(self) -> int:
        """The axis of the weight that counts output channels."""
        by_rows = self.node.op_type == "Conv" or bool(self.node.attributes.get_int("transB"))
        return 0 if by_rows else 1

    @property
    def columns(self) -> int:
        """Output channels."""
        tensor = self.weight.const_value
        assert tensor is not None
        return tensor.shape.numpy()[self.channel_axis]


def weight_nodes(model: ir.Model, local_names: Mapping[str, str]) -> list[WeightNode]:
    """The weight products of a part's graph in its order.

    Args:
        model: float32, as traced, or after passes that join products.
        local_names: `madtp.models.weight_products.part_weight_names` of the part.
    """
    full = set(local_names.values())
    found = []
    for node in model.graph:
        if node.domain or node.op_type not in OPS:
            continue
        weight = node.inputs[WEIGHT_INPUT]
        if weight is None or weight.name is None or weight.name not in model.graph.initializers:
            continue
        parts = weight.name.removesuffix(TRANSPOSED).split(JOINED)
        names = tuple(local_names.get(part, part) for part in parts)
        if full.issuperset(names):
            found.append(WeightNode(node, names))
    return found
