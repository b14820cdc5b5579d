"""ONNX files of others, and broken ones, inspected."""

import os
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from madtp.files.inputs import sha256
from tests.helpers.artifact_files import save_model
from tests.helpers.inspections import Inspect, found


def test_foreign_onnx(foreign: Path, inspect: Inspect) -> None:
    content = found(inspect, foreign)
    shown = content["onnx"]
    assert content["kind"] == "onnx"
    assert shown["producer"] == "somebody 9"
    assert shown["opsets"] == {"": 17, "com.microsoft": 1}
    assert shown["inputs"] == [
        {"name": "x", "dtype": "float16", "shape": ["n", 3]},
        {"name": "flag", "dtype": "bool", "shape": []},
    ]
    assert shown["nodes"] == 5
    assert shown["operators"] == {"Sqrt": 2, "MatMul": 1, "If": 1, "com.microsoft::Gelu": 1}
    assert shown["external"] == {"weights.bin": "found"}
    assert content["verdict"]["runs"] is True


def test_weights_of_a_foreign_onnx_are_looked_for_and_not_read(foreign: Path, inspect: Inspect) -> None:
    weights = foreign.with_name("weights.bin")
    os.truncate(weights, 10)
    assert any("weights.bin" in text and "truncated" in text for text in found(inspect, foreign, status=1)["damage"])
    weights.unlink()
    content = found(inspect, foreign, status=1)
    assert content["onnx"]["external"] == {"weights.bin": "missing"}
    assert content["verdict"] == {"runs": False, "because": ["weights are missing"]}


@pytest.mark.parametrize("location", ["/etc/passwd", "../foreign.onnx", ""])
def test_weights_outside_the_folder_are_not_looked_for(location: str, foreign: Path, inspect: Inspect) -> None:
    model = onnx.load(str(foreign), load_external_data=False)
    next(entry for entry in model.graph.initializer[0].external_data if entry.key == "location").value = location
    foreign.write_bytes(model.SerializeToString())
    assert "not looked for" in found(inspect, foreign, status=1)["onnx"]["external"][location]


def test_names_that_are_no_text_are_damage(foreign: Path, inspect: Inspect) -> None:
    content = foreign.read_bytes()
    name = onnx.load(str(foreign), load_external_data=False).graph.node[0].op_type.encode()
    foreign.write_bytes(content.replace(name, b"\xff" * len(name)))
    assert "not UTF-8" in found(inspect, foreign, status=1)["damage"][0]
    assert inspect(foreign)[0] == 1


def test_sizes_that_no_file_has_are_too_long(foreign: Path, inspect: Inspect) -> None:
    model = onnx.load(str(foreign), load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    next(entry for entry in tensor.external_data if entry.key == "length").value = "9" * 5000
    foreign.write_bytes(model.SerializeToString())
    assert "9" * 20 in " ".join(found(inspect, foreign, status=1)["damage"])


@pytest.mark.parametrize("keep", [0, 1, 30, -1])
def test_truncated_onnx(keep: int, tmp_path: Path, inspect: Inspect) -> None:
    path = save_model(tmp_path / "short.onnx")
    path.write_bytes(path.read_bytes()[:keep])
    content = found(inspect, path, status=1)
    assert content["bytes"] == path.stat().st_size
    assert content["sha256"] == sha256(path)
    assert content["verdict"] == {"runs": False, "because": ["it is damaged"]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"function": False}, "no operator madtp::Twice"),
        ({"opset": 6}, "opset 6"),
        ({"opset": 999}, "opset 999"),
    ],
)
def test_onnx_that_onnx_runtime_would_refuse(
    changes: dict[str, Any], reason: str, tmp_path: Path, inspect: Inspect
) -> None:
    verdict = found(inspect, save_model(tmp_path / "x.onnx", **changes))["verdict"]
    assert verdict["runs"] is False
    assert reason in verdict["because"][0]
