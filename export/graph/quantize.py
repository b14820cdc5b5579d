"""Which weight products of a model are quantized and how: as a pass over its graphs, and as torch computes the same."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from onnxscript import ir

from calibration.fake_quantization import FakeQuantization
from export.graph.quantize_dynamic import quantize_dynamic
from export.graph.quantize_fp8 import quantize_fp8
from export.graph.quantize_static import Ranges, quantize_static
from export.graph.weight_nodes import weight_nodes
from madtp.checkpoint.loading import Model

Precision = Literal["int8", "fp8"]
Mode = Literal["dynamic", "static"]


@dataclass(frozen=True)
class Quantizer:
    """One way to quantize a model.

    Attributes:
        mode: "dynamic" measures ranges of activations while the model runs; then `ranges` is empty.
        products: names of those that are quantized, as far as the mode can.
        ranges: of the products' activations. Products without, to which no sample came, are left alone.
        tensorrt: for a plan.
    """

    precision: Precision
    mode: Mode
    products: frozenset[str]
    ranges: Ranges = field(default_factory=dict)
    tensorrt: bool = False

    def graph_pass(self, local_names: Mapping[str, str], quantized: set[str]) -> Callable[[ir.Model], None]:
        """A pass over a part's graph; the names of the products that it quantizes are added to `quantized`.

        Args:
            local_names: `madtp.models.weight_products.part_weight_names` of the part.
        """
        return partial(self._quantize, local_names, quantized)

    def _quantize(self, local_names: Mapping[str, str], quantized: set[str], model: ir.Model) -> None:
        chosen = [product for product in weight_nodes(model, local_names) if self.products.issuperset(product.names)]
        if self.mode == "dynamic":
            chosen = [product for product in chosen if product.node.op_type == "MatMul"]  # the op with a fused kernel
            quantize_dynamic(model, chosen)
        else:
            chosen = [product for product in chosen if self.ranges.keys() >= set(product.names)]
            if self.precision == "fp8":
                quantize_fp8(model, chosen, self.ranges)
            else:
                quantize_static(model, chosen, self.ranges, tensorrt=self.tensorrt)
        quantized.update(name for product in chosen for name in product.names)

    def in_torch(self, model: Model) -> Callable[[], AbstractContextManager[None]]:
        """Contexts in which a model computes these products as the graphs do, rounded in float32."""
        names = {"fp8": "fp8", "int8": "int8" if self.mode == "dynamic" else "static-int8"}
        return partial(FakeQuantization(model, names[self.precision], self.ranges).of, self.products)
