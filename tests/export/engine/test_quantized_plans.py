"""Plans of quantized graphs: TensorRT for RTX takes every product as the passes write it."""

from pathlib import Path

import pytest
from onnxscript import ir

from export.engine.backends import choose_backend
from export.engine.builder import build_plan
from export.graph.quantize import Precision, Quantizer
from tests.helpers.quantized_graphs import LOCAL_NAMES, weighted_graph


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_quantized_graph_builds(precision: Precision, tmp_path: Path) -> None:
    model, names = weighted_graph(), frozenset(LOCAL_NAMES.values())
    found = set[str]()
    limits = dict.fromkeys(names, (-4.0, 4.0))
    Quantizer(precision, "static", names, limits, tensorrt=True).graph_pass(LOCAL_NAMES, found)(model)
    ir.save(model, tmp_path / "part.onnx")
    profile = {"pixels": [[1, 3, 8, 8], [1, 3, 8, 8], [4, 3, 8, 8]]}
    backend, plan = choose_backend("tensorrt-rtx", ".plan"), tmp_path / "part.plan"
    build_plan(backend, tmp_path / "part.onnx", plan, tmp_path / "timing", profile, lambda _: None)
    assert found == names
    assert plan.stat().st_size > 0
