"""Plugins in real builds of TensorRT for RTX, as its users meet them: what goes wrong reaches their logger."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

import export.engine.builder as engine
from export.engine.backends import choose_backend
from export.errors import BackendError
from madtp.ops.spec import (
    ALIGNED_ATTENTION,
    ALL_OPS,
    DOMAIN,
    MARGIN_NAMESPACE,
    MARGIN_VERSION,
    PACKED_ATTENTION,
    PACKED_COMPACT,
    TOKEN_COMPACT,
    VARLEN_ATTENTION,
    VERSION,
    OpSpec,
)
from tests.helpers.logged_build import REFUSALS, THREADS
from tests.helpers.plugin_case import GOOD, libraries, path_of, sizes_of

WITH_MARGIN = (MARGIN_VERSION, MARGIN_NAMESPACE)
ONNX_TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int64": TensorProto.INT64}


def model(
    spec: OpSpec,
    sizes: dict[str, tuple[int, ...]] | None = None,
    types: dict[str, int] | None = None,
    without: str | None = None,
    identity: tuple[int, str] = (VERSION, DOMAIN),
    **fields: Any,
) -> onnx.ModelProto:
    """One node of `spec`, good but for what is said otherwise; a field that is None is left out."""
    known = dict(zip((tensor.name for tensor in spec.inputs), sizes_of(spec), strict=True))
    inputs = [tensor for tensor in spec.inputs if tensor.name != without]
    values = [
        helper.make_tensor_value_info(
            tensor.name,
            (types or {}).get(tensor.name, ONNX_TYPES.get(tensor.dtype, TensorProto.FLOAT)),
            (sizes or {}).get(tensor.name, known[tensor.name]),
        )
        for tensor in inputs
    ]
    outputs = [
        helper.make_tensor_value_info(f"out_{tensor.name}", ONNX_TYPES.get(tensor.dtype, TensorProto.FLOAT), None)
        for tensor in spec.outputs
    ]
    attributes = {name: value for name, value in {**GOOD[spec.onnx_name], **fields}.items() if value is not None}
    node = helper.make_node(
        spec.onnx_name,
        [value.name for value in values],
        [value.name for value in outputs],
        domain=DOMAIN,
        plugin_namespace=identity[1],
        plugin_version=str(identity[0]),
        **attributes,
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)]
    graph = helper.make_graph([node], "one", values, outputs)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def chain() -> onnx.ModelProto:
    """A layer of the packed layout: what attends to itself is compacted, and looks at others."""
    models = [model(spec) for spec in (PACKED_ATTENTION, PACKED_COMPACT, VARLEN_ATTENTION)]
    linked = {
        "tokens": "out_context",
        "column_score": "out_column_score",
        "class_score": "out_class_score",
        "query": "out_compacted",
    }
    graph = onnx.GraphProto(name="chain")
    for index, proto in enumerate(models):
        node = graph.node.add()
        node.CopyFrom(proto.graph.node[0])
        for position, name in enumerate(node.input):
            # The last looks from where the sequences are after compaction.
            moved = "out_compacted_cu_seqlens" if index == 2 and name == "cu_seqlens" else linked.get(name, name)
            node.input[position] = moved
        if index == 2:
            node.output[0] = "attended"
    made = {name for node in graph.node for name in node.output}
    for value in (value for proto in models for value in proto.graph.input):
        if value.name not in linked and value.name not in {given.name for given in graph.input}:
            graph.input.add().CopyFrom(value)
    for name in ("attended", "out_count", "out_compacted_cu_seqlens"):
        kind = TensorProto.FLOAT if name == "attended" else TensorProto.INT64 if "count" in name else TensorProto.INT32
        assert name in made
        graph.output.add().CopyFrom(helper.make_tensor_value_info(name, kind, None))
    return helper.make_model(graph, opset_imports=models[0].opset_import, ir_version=10)


@dataclass(frozen=True)
class Wrong:
    """A model that TensorRT must not build, and how the plugin's message begins."""

    model: onnx.ModelProto
    message: str


WRONG = {
    "value": Wrong(model(ALIGNED_ATTENTION, heads=0), "AlignedAttention: field 'heads' is 0. It has to be 1 to 65535."),
    "missing": Wrong(model(ALIGNED_ATTENTION, heads=None), "AlignedAttention: field 'heads' is missing."),
    "float": Wrong(model(ALIGNED_ATTENTION, heads=4.0), "AlignedAttention: field 'heads' has type 1 and length 1."),
    "list": Wrong(model(ALIGNED_ATTENTION, heads=[4, 4]), "AlignedAttention: field 'heads' has type 5 and length 2."),
    "string": Wrong(model(TOKEN_COMPACT, layer="3"), "TokenCompact: field 'layer' has type 6"),
    "margin": Wrong(
        model(TOKEN_COMPACT, identity=WITH_MARGIN, keep_margin=2.5),
        "TokenCompact: field 'keep_margin' is 2.5. It has to be 0 to 1.",
    ),
    "whole margin": Wrong(
        model(TOKEN_COMPACT, identity=WITH_MARGIN, keep_margin=1), "TokenCompact: field 'keep_margin' has type 5"
    ),
    "bound": Wrong(model(TOKEN_COMPACT, max_tokens=1), "TokenCompact: max_tokens is 1."),
    "width": Wrong(model(ALIGNED_ATTENTION, heads=5), "AlignedAttention: qkv is 192 wide with 5 heads."),
    "rank": Wrong(
        model(ALIGNED_ATTENTION, sizes={"qkv": (2, 2, 21, 192)}),
        "AlignedAttention: qkv has 4 dimensions and key_mask 2.",
    ),
    "rank of compaction": Wrong(
        model(TOKEN_COMPACT, sizes={"alignment": (2, 20)}), "TokenCompact: input 5 has 2 dimensions. It has to have 3."
    ),
    "inputs": Wrong(
        model(ALIGNED_ATTENTION, without="key_mask"),
        "AlignedAttention: getOutputDataTypes with 1 inputs and 3 outputs.",
    ),
    "type": Wrong(
        model(ALIGNED_ATTENTION, types={"qkv": TensorProto.INT32}),
        "AlignedAttention: qkv is of type int32 and key_mask float32.",
    ),
    "exact": Wrong(
        model(PACKED_COMPACT, capacity=0),
        "PackedTokenCompact: field 'capacity' is 0. Exact sizes are for CPUs",
    ),
    "keys": Wrong(
        model(VARLEN_ATTENTION, sizes={"key_value": (30, 64)}), "VarlenAttention: query is 64 and key_value 64"
    ),
    "type of compaction": Wrong(
        model(TOKEN_COMPACT, types={"source_ids": TensorProto.INT64}),
        "TokenCompact: input 2 is of type int64. It has to be int32.",
    ),
}


@pytest.fixture(scope="module", params=libraries())
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of every model above and a good one of each op: what came of it."""
    folder, scratch = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("scratch")
    good = {spec.onnx_name: model(spec) for spec in ALL_OPS}
    good |= {
        "chain": chain(),
        "with margin": model(TOKEN_COMPACT, identity=WITH_MARGIN, keep_margin=0.1),
        "unknown version": model(TOKEN_COMPACT, identity=(MARGIN_VERSION + 1, MARGIN_NAMESPACE)),
    }
    for name, proto in {**good, **{name: case.model for name, case in WRONG.items()}}.items():
        onnx.save(proto, folder / f"{name}.onnx")
    backend = choose_backend("auto", ".plan")
    command = [sys.executable, "-m", "tests.helpers.logged_build", backend.module, path_of(request.param), folder]
    environment = engine._worker_environment(backend, scratch)
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    return {**json.loads(ran.stdout), "stderr": ran.stderr}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_plugin_refuses_reaches_the_logger_as_an_error(outcomes: dict[str, Any], name: str) -> None:
    built, said = outcomes[name]["built"], outcomes[name]["said"]
    assert not built
    plugin = WRONG[name].message.partition(":")[0]
    messages = [(severity, message) for severity, message in said if message.startswith(f"{plugin}: ")]
    assert [severity for severity, _ in messages] == ["ERROR"], said
    assert messages[0][1].startswith(WRONG[name].message)
    assert plugin not in outcomes["stderr"]


def test_good_nodes_are_built_and_the_logger_hears_no_error(outcomes: dict[str, Any]) -> None:
    for name in (*(spec.onnx_name for spec in ALL_OPS), "with margin", "chain"):
        assert outcomes[name]["built"], outcomes[name]
        assert not [entry for entry in outcomes[name]["said"] if "ERROR" in entry[0]]


def test_no_layer_of_the_packed_ops_has_a_size_that_depends_on_data(outcomes: dict[str, Any]) -> None:
    assert [2, -1, 64] in outcomes["TokenCompact"]["shapes"].values()
    shapes = outcomes["chain"]["shapes"]
    assert [shapes[name] for name in ("out_context", "out_compacted", "attended")] == [[40, 64], [28, 64], [28, 64]]
    assert not [name for name, sizes in shapes.items() if min(sizes, default=0) < 0]


def test_a_node_of_a_version_that_a_library_lacks_is_not_given_to_another(outcomes: dict[str, Any]) -> None:
    """So a library from before margins is not asked for one, and does not ignore it."""
    assert not outcomes["unknown version"]["built"]


def test_a_library_that_is_loaded_again_finds_the_logger_from_any_thread(outcomes: dict[str, Any]) -> None:
    again = outcomes["again"]
    assert again["built"]
    assert len(again["said"]) == THREADS * REFUSALS
    for severity, message in again["said"]:
        assert severity == "ERROR"
        assert message.startswith("TokenCompact: field 'layer' is missing.")


@pytest.mark.parametrize("name", ["width", "rank of compaction", "exact"])
def test_what_a_plugin_refuses_is_what_the_export_says(name: str, tmp_path: Path) -> None:
    """Before the builder's last lines, which may be more than fit."""
    source, plan = tmp_path / "wrong.onnx", tmp_path / "out.plan"
    onnx.save(WRONG[name].model, source)
    backend = choose_backend("auto", ".plan")
    with pytest.raises(BackendError, match="did not build the engine") as caught:
        engine.build_plan(backend, source, plan, tmp_path / "cache", {}, lambda _: None, path_of("host"))
    assert caught.value.why.startswith(WRONG[name].message)
    assert "--plugins none" in caught.value.fix


REGISTERED = """
import importlib, sys
from pathlib import Path
from export.runtime.plan_runner import register_plugins
trt = importlib.import_module(sys.argv[1])

class Logger(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)

    def log(self, severity, message):
        if severity == trt.ILogger.Severity.ERROR:
            print(message)

builder = trt.Builder(Logger())
for _ in range(2):
    register_plugins(trt, Path(sys.argv[2]))
assert trt.get_plugin_registry().get_creator("TokenCompact", "1", "madtp") is not None
"""


def test_the_logger_hears_no_error_of_plugins_that_are_yet_to_be_registered() -> None:
    command = [sys.executable, "-c", REGISTERED, choose_backend("auto", ".plan").module, path_of("host")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
