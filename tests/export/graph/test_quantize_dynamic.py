"""Weight products in a graph, and the pass that computes them in INT8 without calibration."""

from pathlib import Path

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxscript import ir

from export.graph.quantize_dynamic import quantize_dynamic
from export.graph.quantized_weight import quantized_weight
from export.graph.weight_nodes import weight_nodes
from madtp.ops.spec import DOMAIN
from tests.helpers.quantized_graphs import LOCAL_NAMES, answer, exact_session, fused_ops, pixels, weighted_graph


def test_every_product_with_a_weight_of_the_model_is_found_by_its_name() -> None:
    found = weight_nodes(weighted_graph(), LOCAL_NAMES)
    assert [(product.node.op_type, product.name, product.channel_axis) for product in found] == [
        ("Conv", "encoder.image", 0),
        ("MatMul", "encoder.query", 1),
        ("MatMul", "encoder.key", 1),
        ("MatMul", "encoder.out", 1),
        ("Gemm", "encoder.head", 0),
    ]


def test_a_joined_product_has_the_names_of_all() -> None:
    model = weighted_graph()
    model.graph.initializers["query.T"].name = "encoder.query+encoder.key"
    joined = weight_nodes(model, LOCAL_NAMES)[1]
    assert joined.names == ("encoder.query", "encoder.key")
    assert joined.name == "encoder.query+encoder.key"


def test_quantized_products_give_the_answer_within_a_percent(tmp_path: Path) -> None:
    model, images = weighted_graph(), pixels()
    exact = answer(model, images)
    quantize_dynamic(model, weight_nodes(model, LOCAL_NAMES))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    error = np.abs(answer(model, images) - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < 2e-2
    assert not {"query.T", "key.T", "out.T"} & set(model.graph.initializers)


def test_onnxruntime_fuses_the_products_and_quantizes_shared_activations_once(tmp_path: Path) -> None:
    model = weighted_graph()
    quantize_dynamic(model, weight_nodes(model, LOCAL_NAMES))
    ops = fused_ops(model, tmp_path)
    assert ops["DynamicQuantizeMatMul"] == 1  # out, with its bias
    assert (ops["MatMulIntegerToFloat"], ops["DynamicQuantizeLinear"]) == (2, 1)  # query and key, of the same tokens
    assert ops["Add"] == 0


def test_products_that_are_not_named_stay_float32(tmp_path: Path) -> None:
    model = weighted_graph()
    chosen = [product for product in weight_nodes(model, LOCAL_NAMES) if product.name != "encoder.key"]
    quantize_dynamic(model, chosen)
    ops = fused_ops(model, tmp_path)
    assert ops["DynamicQuantizeMatMul"] == 2
    assert model.graph.initializers["key.T"].dtype == ir.DataType.FLOAT


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-20, 1e20), st.sampled_from([0, 1, 3, 4]))
def test_a_weight_is_within_half_a_step_of_its_channel(seed: int, scale: float, index: int) -> None:
    model = weighted_graph(seed)
    product = weight_nodes(model, LOCAL_NAMES)[index]
    weight = product.weight.const_value.numpy() * np.float32(scale)
    weight[(slice(None),) * product.channel_axis + (0,)] = 0  # an empty channel
    product.weight.const_value = ir.Tensor(weight, name=product.weight.name)
    integers, scales = (value.const_value.numpy() for value in quantized_weight(model, product))
    steps = scales.reshape([-1 if axis == product.channel_axis else 1 for axis in range(weight.ndim)])
    assert integers.dtype == np.int8
    assert np.abs(integers).max() == 127
    assert (np.abs(integers * steps.astype(np.float64) - weight) <= steps * 0.5001).all()


_LAYERS = """
<ir_version: 9, opset_import: ["" : 20]>
part (float[n, 64] x) => (float[n, 64] with_gelu, float[n, 64] product, float[n, 64] tanh, float[n, 64] twice)
{
    first = MatMul (x, "query.T")
    biased = Add (bias, first)
    with_gelu = Gelu (biased)
    product = MatMul (x, "key.T")
    sum = Add (product, bias)
    shown = MatMul (sum, "key.T")
    by_row = Add (shown, table)
    tanh = Gelu <approximate = "tanh"> (by_row)
    read = MatMul (x, "query.T")
    once = Add (read, bias)
    twice = Mul (once, read)
}
"""


def test_a_bias_and_a_gelu_join_their_product_where_nothing_else_reads_it() -> None:
    proto = onnx.parser.parse_model(_LAYERS)
    random = np.random.default_rng(0)
    for name, shape in {"query.T": (64, 64), "key.T": (64, 64), "bias": (64,), "table": (1, 64)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(random.random(shape, np.float32), name))
    model = ir.from_proto(proto)
    x = random.random((3, 64), np.float32)
    exact = exact_session(proto.SerializeToString()).run(None, {"x": x})
    quantize_dynamic(model, weight_nodes(model, LOCAL_NAMES))
    quantized = ir.to_proto(model)
    onnx.checker.check_model(quantized, full_check=True)
    found = [(node.op_type, list(node.input)[3:], list(node.output)) for node in quantized.graph.node]
    assert [entry for entry in found if entry[0].startswith("Quantized")] == [
        ("QuantizedLinearGelu", ["bias"], ["with_gelu"]),
        ("QuantizedLinear", ["no_bias.64"], ["product"]),  # an output of the graph
        ("QuantizedLinear", ["no_bias.64"], ["shown"]),  # what is added is no bias
        ("QuantizedLinear", ["no_bias.64"], ["read"]),  # read twice
    ]
    found_answers = exact_session(quantized.SerializeToString()).run(None, {"x": x})
    for expected, rounded in zip(exact, found_answers, strict=True):
        assert np.abs(rounded - expected).max() < 2e-2 * np.abs(expected).max()


def test_no_two_products_read_one_quantized_weight() -> None:
    """ONNX Runtime would not open it on processors where it makes other integers of weights."""
    proto = onnx.parser.parse_model(_LAYERS)
    for name, shape in {"query.T": (64, 64), "key.T": (64, 64), "bias": (64,), "table": (1, 64)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    for node in proto.graph.node:
        node.input[:] = ["query.T" if name == "key.T" else name for name in node.input]
    model = ir.from_proto(proto)
    quantize_dynamic(model, weight_nodes(model, LOCAL_NAMES))
    read = [node.inputs[1] for node in model.graph if node.domain == DOMAIN]
    assert len({value.name for value in read if value is not None}) == len(read) > 1
    exact_session(ir.to_proto(model).SerializeToString())


def test_integers_do_not_saturate() -> None:
    """255 * 127 twice is more than 16 bits hold, in which processors without VNNI add them."""
    graph = """<ir_version: 9, opset_import: ["" : 20]>
    part (uint8[1, 64] a) => (int32[1, 16] y) { y = MatMulInteger (a, b) }"""
    proto = onnx.parser.parse_model(graph)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.full((64, 16), 127, np.int8), "b"))
    (product,) = exact_session(proto.SerializeToString()).run(None, {"a": np.full((1, 64), 255, np.uint8)})
    assert (product == 64 * 255 * 127).all()
