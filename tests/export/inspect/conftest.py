import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import export.inspect.compatibility as compatibility
from export.cli import main as cli
from export.engine.backends import Gpu
from export.inspect.compatibility import Machine
from tests.helpers.artifact_files import VERSIONS, manifest_of, save_manifest, save_model
from tests.helpers.inspections import Inspect, Machines


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machines:
    """Set the machine that is met; without GPUs until told otherwise."""

    def is_now(*gpus: Gpu, cuda13: tuple[str, ...] = (), **packages: str | None) -> None:
        versions = VERSIONS | {name.replace("_", "-"): version for name, version in packages.items()}
        monkeypatch.setattr(compatibility, "this_machine", lambda: Machine(gpus, versions, frozenset(cuda13)))

    is_now()
    return is_now


@pytest.fixture
def inspect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], machine: Machines) -> Inspect:
    """Run the command; its status, output without line breaks, and messages."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["export", "inspect", *map(str, arguments)])
        capsys.readouterr()
        status = cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        if "--json" not in arguments:
            assert all(len(line) <= 118 for line in captured.out.splitlines())
        return status, captured.out, captured.err

    return run


@pytest.fixture
def vqa(tmp_path: Path) -> Path:
    """An ONNX artifact of two parts; its manifest's path."""
    parts = {name: save_model(tmp_path / f"out.{name}.onnx").name for name in ("encoder", "decoder")}
    return save_manifest(tmp_path, manifest_of(tmp_path, "vqa", "out.onnx", parts, "onnxruntime"))


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """An ONNX file of somebody else, with a subgraph, and weights in a file of their own."""
    weight = numpy_helper.from_array(np.zeros((3, 4), np.float32), "weight")
    branch = helper.make_graph(
        [helper.make_node("Sqrt", ["h"], ["r"])],
        "branch",
        [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["h"]),
        helper.make_node("If", ["flag"], ["i"], then_branch=branch, else_branch=branch),
        helper.make_node("Gelu", ["i"], ["y"], domain="com.microsoft"),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 3]),
        helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        helper.make_tensor_value_info("weight", TensorProto.FLOAT, [3, 4]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, producer_name="somebody", producer_version="9", opset_imports=opsets, ir_version=8)
    path = tmp_path / "foreign.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path
