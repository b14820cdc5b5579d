"""The passes that quantize with ranges known beforehand, INT8 and FP8, and what torch computes in their place."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxscript import ir

from export.graph.quantize import Quantizer
from export.graph.quantize_static import Ranges
from export.graph.weight_nodes import weight_nodes
from tests.helpers.quantized_graphs import LOCAL_NAMES, answer, pixels, weighted_graph

NAMES = frozenset(LOCAL_NAMES.values())


def ranges(width: float = 1.0) -> Ranges:
    """Of every product's activations, as wide as they are or by some factor."""
    model = weighted_graph()
    products = weight_nodes(model, LOCAL_NAMES)
    model.graph.outputs.extend(p.activations for p in products if not p.activations.is_graph_input())
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    values = dict(zip(names, session.run(None, {"pixels": pixels()}), strict=True)) | {"pixels": pixels()}
    limits = {p.name: values[p.activations.name] for p in products}
    return {name: (float(value.min()) * width, float(value.max()) * width) for name, value in limits.items()}


def quantized(quantizer: Quantizer) -> tuple[ir.Model, set[str]]:
    model, found = weighted_graph(), set[str]()
    quantizer.graph_pass(LOCAL_NAMES, found)(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model, found


def error(model: ir.Model) -> float:
    exact = answer(weighted_graph(), pixels())
    return float(np.abs(answer(model, pixels()) - exact).max() / np.abs(exact).max())


@pytest.mark.parametrize(("precision", "most"), [("int8", 0.05), ("fp8", 0.2)])
def test_all_products_are_quantized_and_the_answer_stays_close(precision: str, most: float) -> None:
    model, found = quantized(Quantizer(precision, "static", NAMES, ranges()))
    assert found == NAMES
    assert 1e-4 < error(model) < most
    assert not {"query.T", "key.T", "out.T", "head", "image"} & set(model.graph.initializers)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_ranges_decide_the_error(precision: str) -> None:
    narrow, _ = quantized(Quantizer(precision, "static", NAMES, ranges(0.1)))
    assert error(narrow) > 0.3  # nine tenths of the values are cut off


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_plan_has_a_pair_of_nodes_for_every_product(precision: str) -> None:
    model, _ = quantized(Quantizer(precision, "static", NAMES, ranges(), tensorrt=True))
    pairs = Counter(node.op_type for node in model.graph)
    assert pairs["QuantizeLinear"] == len(NAMES)  # query and key, too, which read the same tokens
    assert pairs["DequantizeLinear"] == 2 * len(NAMES)
    bias = [node.inputs[2].name for node in model.graph if node.op_type == "Gemm"]
    assert bias == ["head_bias"]


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_products_without_a_range_stay_float32(precision: str) -> None:
    known = {name: limits for name, limits in ranges().items() if name != "encoder.key"}
    model, found = quantized(Quantizer(precision, "static", NAMES, known))
    assert found == NAMES - {"encoder.key"}
    assert "key.T" in model.graph.initializers


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_part_of_which_nothing_is_quantized_stays_as_it_is(precision: str) -> None:
    model, found = quantized(Quantizer(precision, "static", frozenset(), ranges(), tensorrt=True))
    assert not found
    assert error(model) == 0


def test_a_joined_product_stays_float32_where_one_of_its_names_does() -> None:
    model, found = weighted_graph(), set[str]()
    model.graph.initializers["query.T"].name = "encoder.query+encoder.key"
    Quantizer("int8", "dynamic", NAMES - {"encoder.key"}).graph_pass(LOCAL_NAMES, found)(model)
    assert found == {"encoder.out"}
