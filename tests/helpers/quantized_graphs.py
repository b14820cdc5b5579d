"""A small graph with a weight product of every kind, and ONNX Runtime on it."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxscript import ir

from export.graph.onnx_graph import open_session

WIDTH = 64
LOCAL_NAMES = {name: f"encoder.{name}" for name in ("image", "query", "key", "out", "head")}
_SHAPES = {
    "image": (WIDTH, 3, 4, 4),
    "query.T": (WIDTH, WIDTH),
    "key.T": (WIDTH, WIDTH),
    "out.T": (WIDTH, 32),
    "out_bias": (32,),
    "head": (4, 32),
    "head_bias": (4,),
    "not_a_product": (WIDTH, WIDTH),
}
_GRAPH = """
<ir_version: 9, opset_import: ["" : 20]>
part (float[batch, 3, 8, 8] pixels) => (float[batch, 4] answer)
{
    patches = Conv <strides = [4, 4]> (pixels, image)
    flat_shape = Constant <value = int64[3] {0, 0, -1}> ()
    columns = Reshape (patches, flat_shape)
    tokens = Transpose <perm = [0, 2, 1]> (columns)
    query = MatMul (tokens, "query.T")
    key = MatMul (tokens, "key.T")
    turned = Transpose <perm = [0, 2, 1]> (key)
    scores = MatMul (query, turned)
    mixed = MatMul (scores, tokens)
    other = MatMul (mixed, not_a_product)
    raw_out = MatMul (other, "out.T")
    out = Add (raw_out, out_bias)
    last = Constant <value = int64 {-1}> ()
    row = Gather <axis = 1> (out, last)
    answer = Gemm <transB = 1> (row, head, head_bias)
}
"""


def weighted_graph(seed: int = 0) -> ir.Model:
    """Patches, query and key, their product (which has no weight), a projection with a bias, and a head."""
    proto = onnx.parser.parse_model(_GRAPH)
    random = np.random.default_rng(seed)
    for name, shape in _SHAPES.items():
        weight = random.standard_normal(shape).astype(np.float32) / WIDTH**0.5
        proto.graph.initializer.append(numpy_helper.from_array(weight, name))
    return ir.from_proto(proto)


def pixels(seed: int = 1, batch: int = 2) -> NDArray[np.float32]:
    """Images for that graph."""
    return np.random.default_rng(seed).standard_normal((batch, 3, 8, 8)).astype(np.float32)


def exact_session(content: bytes) -> onnxruntime.InferenceSession:
    """As products open it: integers are added without saturating on any processor."""
    return open_session(content, onnxruntime.SessionOptions(), ["CPUExecutionProvider"])


def answer(model: ir.Model, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What ONNX Runtime computes."""
    session = exact_session(ir.to_proto(model).SerializeToString())
    result: NDArray[np.float32] = session.run(None, {"pixels": images})[0]
    return result


def fused_ops(model: ir.Model, folder: Path) -> Counter[str]:
    """The nodes that ONNX Runtime makes of it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    content = ir.to_proto(model).SerializeToString()
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
