"""The pass to float16 and bfloat16: what becomes narrow, what stays float32, and why."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnxscript import ir

from export.graph.bfloat16_rounding import round_bfloat16
from export.graph.half_precision import ALIGNMENT, EMBEDDING, FIRST, OVERFLOW, SOFTMAX, TOKENS, half_precision
from export.graph.onnx_graph import OnnxGraph, run_graph
from tests.helpers.paths import ROOT

FLOAT, HALF, BF16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
X = np.array([[1.001, -2.003], [3.007, 0.333]], np.float32)
LINEAR = "product = MatMul (x, w)  y = Add (product, b)"
W, B = np.array([[1.1, 0.3], [-0.7, 2.2]]), np.array([0.123, -4.56])


def graph_of(body: str, **weights: Any) -> ir.Model:
    """A float32 graph from x [2, 2] to y, with float32 weights."""
    text = f'<ir_version: 9, opset_import: ["": 20]> graph (float[2, 2] x) => (float[p, q] y) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    for name, values in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
    return ir.serde.deserialize_model(model)


def types(model: ir.Model) -> dict[str, ir.DataType | None]:
    """Type of every value by name."""
    made = [value for node in model.graph for value in node.outputs]
    return {str(value.name): value.dtype for value in (*model.graph.inputs, *model.graph.initializers.values(), *made)}


def run(model: ir.Model, x: Any = X) -> Any:
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    return run_graph(OnnxGraph(proto, ROOT), {"x": x}, ["y"])["y"]


@pytest.mark.parametrize(("precision", "narrow"), [("fp16", HALF), ("bf16", BF16)])
def test_weights_and_values_are_narrow_and_the_edges_float32(precision: str, narrow: ir.DataType) -> None:
    model = graph_of(LINEAR, w=W, b=B)
    assert half_precision(model, precision) == {}
    found = types(model)
    assert [found[name] for name in ("w", "b", "product")] == [narrow] * 3
    assert (found["x"], found["y"]) == (FLOAT, FLOAT)


def test_inputs_and_outputs_are_narrow_if_asked_for() -> None:
    model = graph_of(LINEAR, w=W, b=B)
    half_precision(model, "fp16", narrow_io=True)
    assert set(types(model).values()) == {HALF}
    y = run(model, X.astype(np.float16))
    assert y.dtype == np.float16
    np.testing.assert_allclose(y, X @ W + B, rtol=2e-3)


def test_a_softmax_computes_in_float32() -> None:
    model = graph_of("scores = MatMul (x, w)  p = Softmax <axis = -1> (scores)  y = MatMul (p, w)", w=W)
    assert half_precision(model, "fp16") == {SOFTMAX: 1}
    found = types(model)
    assert (found["scores"], found["p"], found["p.float16"]) == (HALF, FLOAT, HALF)


def test_an_embedding_is_divided_by_its_length_in_float32() -> None:
    """Its smallest length, 1e-12, is nothing in float16."""
    body = """e = MatMul (x, w)  axes = Constant <value = int64[1] {1}> ()  n = ReduceL2 (e, axes)
              least = Constant <value = float {1e-12}> ()  safe = Clip (n, least)  y = Div (e, safe)"""
    model = graph_of(body, w=W)
    assert half_precision(model, "fp16") == {EMBEDDING: 3}
    found = types(model)
    assert (found["e"], found["n"], found["safe"], found["least"]) == (HALF, FLOAT, FLOAT, FLOAT)
    assert not run(model, np.zeros((2, 2), np.float32)).any()  # 0 / 0 would be no number


def test_weights_that_overflow_float16_are_named_and_stay() -> None:
    large = W * 1e5
    model = graph_of("big = MatMul (x, w)  y = Mul (big, b)", w=large, b=[1e-4, 1e-4])
    assert half_precision(model, "fp16") == {f"{OVERFLOW}w": 1}
    assert "bf16" in OVERFLOW
    found = types(model)
    assert (found["w"], found["big"], found["b"]) == (FLOAT, FLOAT, HALF)
    model = graph_of(LINEAR, w=large, b=B)
    assert half_precision(model, "bf16") == {}
    assert types(model)["w"] == BF16


def test_a_value_that_an_island_and_others_take_is_cast_once_for_each() -> None:
    body = "s = MatMul (x, w)  p = Softmax <axis = -1> (s)  q = Softmax <axis = 0> (s)  r = Add (p, q)  y = Add (r, s)"
    model = graph_of(body, w=W)
    half_precision(model, "fp16")
    casts = [node.outputs[0].name for node in model.graph if node.op_type == "Cast"]
    assert sorted(map(str, casts)) == ["p.float16", "q.float16", "s.float", "x.float16", "y"]
    run(model)


def test_onnx_runtime_gets_bfloat16_as_float32_that_is_rounded() -> None:
    """It computes what torch does in bfloat16, and no op but Cast touches bfloat16."""
    body = """h = MatMul (x, w)  t = Transpose <perm = [1, 0]> (h)  g = Gelu (t)
              p = Softmax <axis = -1> (g)  y = Add (p, b)"""
    model = graph_of(body, w=W, b=B)
    half_precision(model, "bf16")
    round_bfloat16(model)
    assert all(node.op_type == "Cast" or {v.dtype for v in node.outputs} == {FLOAT} for node in model.graph)
    assert types(model)["w"] == BF16  # half the size
    x, w, b = (torch.tensor(array, dtype=torch.bfloat16) for array in (X, W, B))
    hidden = torch.nn.functional.gelu((x @ w).T)
    expected = hidden.float().softmax(dim=-1).bfloat16() + b
    assert np.array_equal(run(model), expected.float().numpy())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_alignment_is_computed_in_float32(tiny_program: torch.onnx.ONNXProgram, precision: str) -> None:
    model = ir.from_proto(ir.to_proto(tiny_program.model))  # a clone shares types, which the pass changes
    reasons = half_precision(model, precision)
    products = [node.inputs[5].producer() for node in model.graph if node.op_type == "TokenCompact"]
    assert products
    assert reasons[ALIGNMENT] >= len(products)
    for product in products:
        assert [value.dtype for value in product.inputs] == [FLOAT, FLOAT]


LAYER = """h = LayerNormalization <axis = -1> (x, g)  p = MatMul (h, w)  q = Add (p, b)  r = Add (x, q)
           y = LayerNormalization <axis = -1> (r, g)"""


@pytest.mark.parametrize(("precision", "tokens"), [("fp16", HALF), ("bf16", FLOAT)])
def test_bfloat16_alone_carries_tokens_from_layer_to_layer_in_float32(precision: str, tokens: ir.DataType) -> None:
    model = graph_of(LAYER, w=W, b=B, g=[1.0, 2.0])
    assert half_precision(model, precision) == ({TOKENS: 3} if precision == "bf16" else {})
    found = types(model)
    assert [found[name] for name in ("h", "r", "g")] == [tokens] * 3
    assert FLOAT not in {found[name] for name in ("w", "b", "p", "q")}


@pytest.mark.parametrize(
    ("inputs", "made"),
    [
        ("float[1, 3, 2, 2] x", "rows = Constant <value = int64[2] {6, 2}> ()  raw = Reshape (x, rows)"),
        ("int64[2] x", "raw = Gather (w, x)"),
    ],
    ids=["pixels", "words"],
)
def test_the_first_product_of_an_input_is_float32_in_bfloat16_and_the_next_narrow(inputs: str, made: str) -> None:
    body = f"{made}  first = MatMul (raw, v)  biased = Add (first, b)  next = MatMul (biased, v)"
    text = f'<ir_version: 9, opset_import: ["": 20]> graph ({inputs}) => (float[p, q] next) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    for name, values in (("w", W), ("v", W), ("b", B)):
        proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    model = ir.serde.deserialize_model(proto)
    assert half_precision(model, "bf16")[FIRST] == 2
    found = types(model)
    assert (found["raw"], found["first"], found["biased"], found["next.bfloat16"]) == (FLOAT, FLOAT, FLOAT, BF16)


def test_compaction_takes_float32_tokens_in_bfloat16_and_attention_narrow_ones(
    tiny_program: torch.onnx.ONNXProgram,
) -> None:
    model = ir.from_proto(ir.to_proto(tiny_program.model))
    half_precision(model, "bf16")
    taken = {(node.op_type, node.inputs[0].dtype) for node in model.graph if node.domain == "madtp"}
    assert taken == {("TokenCompact", FLOAT), ("AlignedAttention", BF16)}
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
