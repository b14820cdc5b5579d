"""Graph pass: weight products in INT8 with ranges known beforehand, as QuantizeLinear and DequantizeLinear nodes."""

from collections.abc import Iterable, Mapping

import numpy as np
from onnxscript import ir

from export.graph.weight_nodes import OPS, WeightNode

Ranges = Mapping[str, tuple[float, float]]  # weight product -> least and largest value of its activations


def quantize_static(model: ir.Model, products: Iterable[WeightNode], ranges: Ranges, *, tensorrt: bool) -> None:
    """Compute weight products in INT8: weights per output channel, activations per tensor, both symmetric.

    Args:
        products: those of `model` to quantize.
        ranges: of all of them (`calibration.ranges`).
        tensorrt: as TensorRT wants it, a pair of nodes for every product that reads activations. ONNX Runtime is faster
            where products share one.
    """
    # Its top-level functions read files, calibrate themselves and inline function bodies; this is what they call.
    from onnxruntime.quantization.calibrate import TensorData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import QuantType

    chosen = list(products)
    if not chosen:
        return  # the quantizer takes no nodes for all nodes
    limits = {
        product.activations.name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for product in chosen
        for low, high in [ranges[product.names[0]]]  # joined products read the same activations
    }
    for number, product in enumerate(chosen):
        product.node.name = product.node.name or f"weight_product_{number}"  # it tells nodes apart by their names
    quantizer = QDQQuantizer(
        ir.to_proto(model),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=limits,
        nodes_to_quantize=[product.node.name for product in chosen],
        nodes_to_exclude=[],
        op_types_to_quantize=list(OPS),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "DedicatedQDQPair": tensorrt,
            "OpTypesToExcludeOutputQuantization": list(OPS),
        },
    )
    quantizer.quantize_model()
    model.graph = ir.from_proto(quantizer.model.model).graph
    model.graph.sort()  # its nodes are in any order
