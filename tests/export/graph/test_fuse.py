"""Products in the form that ONNX Runtime's CPU computes fastest: fewer nodes, the same values."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import madtp
from export.graph.fuse import fuse_products
from export.graph.trace import trace_part, write_part
from export.graph.weight_nodes import weight_nodes
from madtp.models.parts import parts_of
from madtp.models.weight_products import part_weight_names
from tests.helpers.paths import ROOT

CHECKPOINT = ROOT / "madtp" / "demo" / "nlvr-digits.pt"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, part = tmp_path_factory.mktemp("fused"), parts_of(madtp.load(CHECKPOINT))["model"]
    paths = {"traced": folder / "traced.onnx", "fused": folder / "fused.onnx"}
    write_part(part, paths["traced"])
    write_part(part, paths["fused"], passes=[fuse_products])
    return paths


def count(path: Path, op_type: str) -> int:
    return sum(node.op_type == op_type for node in onnx.load(str(path)).graph.node)


def test_patches_are_a_matrix_product(files: dict[str, Path]) -> None:
    assert count(files["traced"], "Conv") == 1
    assert count(files["fused"], "Conv") == 0


def test_query_key_and_value_are_one_product(files: dict[str, Path]) -> None:
    layers = madtp.load(CHECKPOINT).config.text_layers
    patches = 1
    assert count(files["fused"], "MatMul") == count(files["traced"], "MatMul") - 2 * layers + patches


def test_answers_and_tokens_are_the_same(files: dict[str, Path]) -> None:
    config, g = madtp.load(CHECKPOINT).config, np.random.default_rng(3)
    shape = (3, 3, config.image_size, config.image_size)
    inputs = {
        **{name: g.standard_normal(shape, np.float32) for name in ("image0", "image1")},
        "input_ids": g.integers(1, 20, (3, 9)),
        "attention_mask": np.repeat([[1] * 7 + [0] * 2], 3, axis=0),
        "temperature": np.array(0.08, np.float32),
    }
    traced, fused = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, inputs)
        for path in files.values()
    )
    for expected, actual in zip(traced, fused, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=1e-5)


def test_every_product_keeps_its_name() -> None:
    model = madtp.load(CHECKPOINT)
    part = parts_of(model)["model"]
    graph, names = trace_part(part).model, part_weight_names(model, part)
    before = {name for node in weight_nodes(graph, names) for name in node.names}
    fuse_products(graph)
    assert before == {name for node in weight_nodes(graph, names) for name in node.names}
    assert len(before) > 50
