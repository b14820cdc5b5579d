"""Linear layers in INT8 as nodes with function bodies: what ONNX Runtime runs, or a kernel of ours in their place."""

import onnx.parser
from onnx import FunctionProto

from export.graph.functions import OPSET
from madtp.ops.spec import DOMAIN

QUANTIZED_LINEAR = "QuantizedLinear"
QUANTIZED_LINEAR_GELU = "QuantizedLinearGelu"

# activations [..., K] float32, weight [K, N] int8, scale and bias [N] float32 -> output [..., N] float32. ONNX Runtime
# fuses all of it to one op where nothing else reads the activations.
_BODY = """
    quantized, quantized_scale, zero_point = DynamicQuantizeLinear (activations)
    integer = MatMulInteger (quantized, weight, zero_point)
    wide = Cast <to = 1> (integer)
    scales = Mul (quantized_scale, scale)
    product = Mul (wide, scales)
"""
_PLAIN = "    output = Add (product, bias)\n"
_GELU = "    linear = Add (product, bias)\n    output = Gelu (linear)\n"


def quantized_linear_functions() -> list[FunctionProto]:
    """QuantizedLinear, and QuantizedLinearGelu, which has a GELU behind it."""
    return [
        onnx.parser.parse_function(
            f'<opset_import: ["" : {OPSET}], domain: "{DOMAIN}">\n'
            f"{name} (activations, weight, scale, bias) => (output) {{{_BODY}{rest}}}"
        )
        for name, rest in ((QUANTIZED_LINEAR, _PLAIN), (QUANTIZED_LINEAR_GELU, _GELU))
    ]
