"""The traced ONNX file: what is in it, and that it is valid and portable."""

from pathlib import Path

import onnx
import onnx.inliner
import pytest
import torch

import export.graph.trace
from export.graph.trace import save_onnx, trace_part
from madtp.models.nlvr import NlvrModel
from madtp.models.parts import parts_of
from madtp.ops.spec import DOMAIN
from tests import golden
from tests.helpers.paths import CARRIED, ROOT

HEADS, VISION_LAYERS, TEXT_LAYERS = 4, 5, 8


@pytest.fixture(scope="module")
def model() -> NlvrModel:
    return golden.load_model(CARRIED)


@pytest.fixture(scope="module")
def program(model: NlvrModel) -> torch.onnx.ONNXProgram:
    return trace_part(parts_of(model)["model"])


@pytest.fixture(scope="module")
def traced(program: torch.onnx.ONNXProgram, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("trace") / "model.onnx"
    save_onnx(program, path)
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]  # small weights stay inside
    return onnx.load(str(path))


def attributes(node: onnx.NodeProto) -> dict:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def test_every_layer_is_a_pair_of_custom_nodes(traced: onnx.ModelProto) -> None:
    attention, compact = (
        [attributes(node) for node in traced.graph.node if node.domain == DOMAIN and node.op_type == name]
        for name in ("AlignedAttention", "TokenCompact")
    )
    plugin = {"plugin_namespace": b"madtp", "plugin_version": b"1"}
    expected = [{"causal": 0, "heads": HEADS, "biased": biased, **plugin} for biased in (0, 1)]
    assert attention == [expected[0]] * VISION_LAYERS + [expected[1]] * TEXT_LAYERS  # only words are ever masked
    layers = [*range(VISION_LAYERS), *range(TEXT_LAYERS)]
    assert sorted(a["layer"] for a in compact) == sorted(layers)
    assert all(plugin.items() <= a.items() for a in compact)


def test_function_bodies_are_in_the_file(traced: onnx.ModelProto) -> None:
    assert sorted((f.domain, f.name) for f in traced.functions) == [
        (DOMAIN, "AlignedAttention"),
        (DOMAIN, "TokenCompact"),
    ]
    onnx.checker.check_model(traced, full_check=True)
    inlined = onnx.inliner.inline_local_functions(traced)
    assert not [node for node in inlined.graph.node if node.domain]


def test_inputs_and_outputs_have_the_agreed_names_types_and_dimensions(traced: onnx.ModelProto) -> None:
    def described(values: list) -> dict:
        return {
            v.name: (
                onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type).name,
                [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
            )
            for v in values
        }

    assert described(traced.graph.input) == {
        "image0": ("float32", ["batch", 3, 96, 96]),
        "image1": ("float32", ["batch", 3, 96, 96]),
        "input_ids": ("int64", ["batch", "text"]),
        "attention_mask": ("int64", ["batch", "text"]),
        "temperature": ("float32", []),
    }
    assert described(traced.graph.output) == {
        "logits": ("float32", ["batch", 2]),
        "vision_token_counts": ("int32", ["2*batch", VISION_LAYERS]),
        "text_token_counts": ("int32", ["batch", TEXT_LAYERS]),
    }


def test_no_path_of_the_exporting_machine_is_in_the_file(traced: onnx.ModelProto) -> None:
    data = traced.SerializeToString()
    assert str(ROOT).encode() not in data
    assert b"site-packages" not in data


def test_every_input_is_used(traced: onnx.ModelProto) -> None:
    used = {name for node in traced.graph.node for name in node.input}
    assert {value.name for value in traced.graph.input} <= used


def test_weights_over_the_limit_go_beside_the_file(
    program: torch.onnx.ONNXProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.graph.trace, "EXTERNAL_DATA_LIMIT", 1_000_000)
    path = tmp_path / "big.onnx"
    save_onnx(program, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    assert (tmp_path / "big.onnx.data").stat().st_size > 1_000_000 > path.stat().st_size
