"""`python -m export inspect`: what is shown of whole, damaged and foreign files, and what it says of this machine."""

import json
import os
import struct
import sys
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import export.inspect.compatibility as compatibility
from export.artifact.manifest import KEPT_FAILURES
from export.cli import main as cli
from export.engine.backends import Gpu
from export.inspect.compatibility import Machine
from madtp.files.inputs import sha256
from tests.helpers.manifests import edit_manifest, write_manifest

CHECKPOINT = "ab" * 32
VERSION = metadata.version("madtp-deploy")
VERSIONS = {"onnxruntime": "1.32.0", "tensorrt": "10.14.1", "tensorrt-rtx": "1.7.1.116"}
RTX = Gpu("RTX 4090", (8, 9), "580.65.06")
H200 = Gpu("H200", (9, 0), "580.65.06")

Inspect = Callable[..., tuple[int, str, str]]
Machines = Callable[..., None]


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


def found(inspect: Inspect, path: Path, status: int = 0) -> dict[str, Any]:
    """The JSON of an inspection; the table is shown too, so that every case is rendered."""
    assert inspect(path)[0] == status
    shown = inspect(path, "--json")
    assert shown[0] == status
    content: dict[str, Any] = json.loads(shown[1])
    assert bool(content["damage"]) == (status == 1)
    return content


def save_model(path: Path, function: bool = True, opset: int = 20, domain: str = "madtp") -> Path:
    """A model with one node of another domain, and the function that defines it unless left out."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 20, "{domain}": 1], producer_name: "test">
        g (float[batch, 3] x) => (float[batch, 3] y) {{ z = {domain}.Twice (x)  y = Relu (z) }}
        <domain: "{domain}", opset_import: ["": 20]> Twice (a) => (b) {{ b = Add (a, a) }}"""
    )
    model.opset_import[0].version = opset
    if not function:
        del model.functions[:]
    path.write_bytes(model.SerializeToString())
    return path


def part_entry(folder: Path, name: str, artifact: str) -> dict[str, Any]:
    path = folder / artifact
    shape = {"name": "x", "dtype": "float32", "shape": ["batch", 3]}
    return {
        "name": name,
        "checkpoint_sha256": CHECKPOINT,
        "onnx_sha256": "0" * 64,
        "inputs": [shape, {"name": "temperature", "dtype": "float32", "shape": []}],
        "outputs": [{**shape, "name": "y"}],
        "profile": {"x": [[1, 3], [2, 3], [8, 3]]},
        "timing_cache": None,
        "custom_nodes": {"TokenCompact": 7},
        "layers": None,
        "plugin_layers": {},
        "tokens": None,
        "artifact": artifact,
        "sha256": sha256(path),
        "bytes": path.stat().st_size,
        "external_data": None,
    }


def manifest_of(folder: Path, task: str, artifact: str, parts: dict[str, str], backend: str) -> dict[str, Any]:
    (folder / "out.vocab.txt").write_text("[PAD]\n")
    parity = {
        "temperature": 0.5,
        "requests": 32,
        "worst": 2.5e-05,
        "worst_output": "logits",
        "tolerance": 4e-4,
        "decisions_equal": 32,
        "layers_equal": 2,
        "layers": 2,
        "explained": 0,
        "failures": [],
        "mean_tokens": {"vision": [5.0, 4.0]},
    }
    return {
        "schema": 4,
        "created": "2026-01-02T03:04:05+00:00",
        "task": task,
        "artifact": artifact,
        "config": {},
        "checkpoint": {"file": "x.pt", "sha256": CHECKPOINT, "bytes": 1234, "epoch": 3},
        "temperature": 0.5,
        "layout": "dynamic",
        "batching": "reference",
        "precision": "fp32",
        "backend": {"name": backend, "version": VERSIONS[backend], "reason": "asked for"},
        "tools": {},
        "plugins": {"mode": "none", "library": None},
        "parts": [part_entry(folder, name, file) for name, file in parts.items()],
        "preprocessing": {
            "image": {"size": 32, "mode": "RGB", "resize": "", "scale": 1.0, "mean": [0.0] * 3, "std": [1.0] * 3},
            "text": {
                "tokenizer": "bert-wordpiece",
                "lowercase": True,
                "dropped": "",
                "dropped_as": "",
                "max_words": None,
                "first_id": 1,
                "last_id": 2,
                "pad_id": 0,
                "max_tokens": 35,
                "padded": False,
                "prompt": None,
                "vocabulary": {"file": "out.vocab.txt", "sha256": sha256(folder / "out.vocab.txt")},
            },
        },
        "seconds": {},
        "validation": {
            "artifact": "passed",
            "validated": "artifact",
            "samples": "16 of the tests",
            "parity": [parity],
            "gflops": {"dense": 2.5, "pruned": 1.25},
            "latency": {},
            "machine": "x86_64",
        },
    }


def save_manifest(folder: Path, manifest: dict[str, Any]) -> Path:
    path = folder / "out.json"
    write_manifest(path, manifest)
    return path


@pytest.fixture
def vqa(tmp_path: Path) -> Path:
    """An ONNX artifact of two parts; its manifest's path."""
    parts = {name: save_model(tmp_path / f"out.{name}.onnx").name for name in ("encoder", "decoder")}
    return save_manifest(tmp_path, manifest_of(tmp_path, "vqa", "out.onnx", parts, "onnxruntime"))


def save_library(path: Path, sm: str = "80,89") -> Path:
    mark = json.dumps({"version": VERSION, "source": "c" * 64, "sm": sm})
    path.write_bytes(b"\x7fELF...madtp-plugins " + mark.encode() + b"\0")
    return path


def plan_artifact(folder: Path, backend: str = "tensorrt-rtx", plugins: bool = True) -> Path:
    (folder / "out.plan").write_bytes(b"not a real plan")
    manifest = manifest_of(folder, "nlvr", "out.plan", {"model": "out.plan"}, backend)
    if plugins:
        library = save_library(folder / "out.plugins.so")
        entry = {"file": library.name, "embedded": False, "version": VERSION, "sha256": sha256(library)}
        manifest["plugins"] = {"mode": "library", "library": {**entry, "source_sha256": "c" * 64, "sm": [80, 89]}}
        tokens = {"source": "guessed", "origin": "nothing", "samples": 2, "opt_max": {"vision": [[3, 5], [2, 5]]}}
        manifest["parts"][0] |= {"tokens": tokens, "layers": 99, "plugin_layers": {"TokenCompact": 7}}
    return save_manifest(folder, manifest)


@pytest.mark.parametrize("name", ["out.json", "out.encoder.onnx", "out.vocab.txt"])
def test_everything_of_an_artifact_is_shown(name: str, vqa: Path, inspect: Inspect) -> None:
    status, table, _ = inspect(vqa.with_name(name))
    assert status == 0
    for text in (
        *("vqa", "encoder, decoder", "x.pt, sha256 abababababab, 1,234 bytes, epoch 3", "0.5", "dynamic", "fp32"),
        *("onnxruntime 1.32.0", "2026-01-02T03:04:05", "out.vocab.txt: verified", "ai.onnx 20, madtp 1"),
        *("x float32 [batch, 3]  min [1, 3]  opt [2, 3]  max [8, 3]", "temperature float32 []", "y float32 [batch, 3]"),
        *("7 TokenCompact", "passed", "16 of the tests", "worst difference 2.5e-05 of logits", "dense 2.500"),
        "pruned 1.250",
    ):
        assert text in table
    content = found(inspect, vqa.with_name(name))
    assert content["kind"] == "artifact"
    assert [part["state"] for part in content["manifest"]["parts"]] == ["verified", "verified"]
    assert content["verdict"] == {"runs": True, "because": []}


def test_plan_shows_library_and_token_sizes(tmp_path: Path, inspect: Inspect) -> None:
    plan_artifact(tmp_path)
    status, table, _ = inspect(tmp_path / "out.plan")
    assert status == 0
    for text in ("out.plugins.so: verified; version 0.1.0, for compute capability 8.0, 8.9", "guessed: nothing"):
        assert text in table
    for text in ("3/5 2/5", "7 TokenCompact (of 99 layers)", "no, because there is no GPU"):
        assert text in table


@pytest.mark.parametrize("state", ["DIFFERENT", "MISSING"])
@pytest.mark.parametrize("name", ["out.plan", "out.plugins.so", "out.vocab.txt"])
def test_every_file_is_held_to_its_hash(
    name: str, state: str, tmp_path: Path, inspect: Inspect, machine: Machines
) -> None:
    manifest = plan_artifact(tmp_path)
    machine(RTX)
    assert found(inspect, manifest)["verdict"]["runs"] is True
    if state == "MISSING":
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(b"another file")
    content = found(inspect, manifest, status=1)
    assert any(name in text and state in text for text in content["damage"])
    assert content["verdict"]["runs"] is False
    assert content["manifest"]["task"] == "nlvr"


def test_part_that_is_cut_short_is_named(vqa: Path, inspect: Inspect) -> None:
    path = vqa.with_name("out.decoder.onnx")
    path.write_bytes(path.read_bytes()[:-20])
    content = found(inspect, path, status=1)
    size = path.stat().st_size
    assert any("'out.decoder.onnx': DIFFERENT" in text and f"has {size} bytes" in text for text in content["damage"])
    assert "passed; that was before the damage" in inspect(path)[1]
    assert any("no complete ONNX" in text for text in content["damage"])
    assert content["manifest"]["parts"][0]["state"] == "verified"


def test_missing_parts_and_parts_of_another_checkpoint_are_damage(vqa: Path, inspect: Inspect) -> None:
    manifest = json.loads(vqa.read_text())
    manifest["parts"][0]["checkpoint_sha256"] = "0" * 64
    write_manifest(vqa, manifest)
    assert "the part 'encoder' was made from another checkpoint" in found(inspect, vqa, status=1)["damage"]
    del manifest["parts"][0]
    write_manifest(vqa, manifest)
    assert any("its parts are decoder" in text for text in found(inspect, vqa, status=1)["damage"])


def test_names_outside_the_folder_are_not_followed(vqa: Path, inspect: Inspect) -> None:
    manifest = json.loads(vqa.read_text())
    secret = vqa.parent.parent / "secret.onnx"
    manifest["parts"][0] |= {"artifact": f"../{secret.name}", "sha256": sha256(save_model(secret))}
    write_manifest(vqa, manifest)
    content = found(inspect, vqa, status=1)
    assert content["manifest"]["parts"][0]["state"] == "not a name of a file beside the manifest"
    assert content["manifest"]["parts"][0]["opsets"] is None


def test_manifest_of_another_schema_is_shown_as_far_as_it_is_understood(vqa: Path, inspect: Inspect) -> None:
    manifest = json.loads(vqa.read_text())
    manifest |= {"schema": 2, "validation": "none", "backend": {"name": "tensorrt"}}
    write_manifest(vqa, manifest)
    content = found(inspect, vqa)
    assert any("of schema 2" in note for note in content["notes"])
    assert content["manifest"]["valid"] is False
    assert content["manifest"]["parts"][1]["state"] == "verified"
    assert content["verdict"]["runs"] is None


@pytest.mark.parametrize(
    "change",
    [
        {"parts": "none"},
        {
            "parts": [
                {"name": ["x"], "profile": {"x": 1}, "inputs": [1, {"name": 2, "shape": {}}], "tokens": {"opt_max": 1}}
            ]
        },
        {"task": 3, "checkpoint": [], "temperature": float("nan"), "preprocessing": None},
        {"plugins": {"library": {"sm": "90", "file": 7}}, "backend": {"name": "tensorrt-rtx", "version": "1"}},
        {"validation": {"parity": [{"worst": "x"}, 4], "gflops": [1]}, "created": "\x1b[2J\ud800"},
        {"validation": {"verdict": {"pairs": [{"pair": []}, 3], "failures": [1, "\udfff"], "bisected": [2]}}},
        {"checkpoint": {"file": "\ud800", "sha256": "\udc00"}, "parts": [{"name": "\ud800", "artifact": "\ud800"}]},
    ],
)
def test_malformed_manifests_are_shown_and_called_damaged(change: dict[str, Any], vqa: Path, inspect: Inspect) -> None:
    write_manifest(vqa, json.loads(vqa.read_text()) | change)
    content = found(inspect, vqa, status=1)
    assert any("malformed" in text for text in content["damage"])
    assert content["manifest"]["artifact"] == "out.onnx"
    assert "\x1b" not in inspect(vqa)[1]


def test_halves_of_surrogate_pairs_are_shown_as_question_marks(vqa: Path, inspect: Inspect) -> None:
    manifest = json.loads(vqa.read_text())
    manifest["parts"][0]["name"] = manifest["checkpoint"]["file"] = "a\ud800b"
    manifest["validation"]["parity"][0]["temperature"] = "\udfff"
    write_manifest(vqa, manifest)
    content = found(inspect, vqa, status=1)
    assert content["manifest"]["parts"][0]["name"] == "a?b"
    assert any("surrogates not allowed" in text for text in content["damage"])
    assert "a?b" in inspect(vqa)[1]


def test_failures_of_a_later_validation_are_shown_before_what_the_export_saw(vqa: Path, inspect: Inspect) -> None:
    manifest = json.loads(vqa.read_text())
    pair = {"pair": "torch/onnx", "temperature": 0.5, "status": "failed", "requests": 12, "explained": 1}
    failure = "torch/onnx, temperature 0.5, samples [3]: logits differ"
    manifest["validation"] |= {
        "artifact": "failed",
        "verdict": {
            "created": "2026-02-03T04:05:06+00:00",
            "status": "failed",
            "samples": {"kind": "samples", "origin": "8 of there", "count": 8, "words": "read"},
            "pairs": [pair | {"outputs": [], "layers": 2, "layers_equal": 1}],
            "batch_mates": [],
            "failures": [failure],
            "bisected": "the MatMul 'm'",
        },
    }
    save_manifest(vqa.parent, manifest)
    table = inspect(vqa)[1]
    lines = ("validated", "failed on 2026-02-03", "12 requests compared, 1 left out", "the MatMul 'm'", failure)
    places = [table.index(text) for text in (*lines, "at the export", "32 of 32 answers equal")]
    assert places == sorted(places)
    manifest["validation"]["verdict"]["failures"] = [failure] * KEPT_FAILURES
    save_manifest(vqa.parent, manifest)
    table = inspect(vqa)[1]
    assert table.count(failure) == 6
    assert "and 14 or more others" in table
    manifest["validation"]["verdict"]["failures"] = [failure]
    save_manifest(vqa.parent, manifest)
    verdict = found(inspect, vqa)["manifest"]["validation"]["verdict"]
    assert verdict["failures"] == [failure]
    assert verdict["pairs"] == [pair]


def test_truncated_manifest_is_damage_and_the_file_beside_it_is_still_shown(vqa: Path, inspect: Inspect) -> None:
    vqa.write_text(vqa.read_text()[:500])
    assert "no complete JSON" in found(inspect, vqa, status=1)["damage"][0]
    content = found(inspect, vqa.with_name("out.encoder.onnx"), status=1)
    assert "'out.json', cannot be read" in content["damage"][0]
    assert content["onnx"]["opsets"] == {"": 20, "madtp": 1}
    assert content["notes"] == []
    assert content["verdict"]["runs"] is True  # what is wrong with the manifest is not wrong with the file
    vqa.write_text("[" * 100_000)
    assert found(inspect, vqa, status=1)["kind"] == "manifest"


def test_manifest_of_other_files_is_not_taken(vqa: Path, inspect: Inspect) -> None:
    content = found(inspect, save_model(vqa.with_name("out.onnx")))
    assert content["manifest"] is None
    assert "'out.json' beside it is the manifest of 'out.onnx' and does not name this file" in content["notes"]


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


def test_versions_of_onnx_runtime(vqa: Path, inspect: Inspect, machine: Machines) -> None:
    machine(onnxruntime="1.9.0")
    assert "is older" in str(found(inspect, vqa)["verdict"])
    machine(onnxruntime="1.33.0")
    assert found(inspect, vqa)["verdict"]["runs"] is True
    machine(onnxruntime=None)
    assert found(inspect, vqa)["verdict"] == {"runs": False, "because": ["onnxruntime is not installed"]}


@pytest.mark.parametrize(
    ("gpus", "installed", "runs", "reason"),
    [
        ((), {}, False, "there is no GPU"),
        ((RTX,), {}, True, ""),
        ((H200, RTX), {}, True, ""),
        ((H200,), {}, False, "H200 has 9.0"),
        ((H200,), {}, False, "no code for compute capability 9.0"),
        ((Gpu("RTX 5090", (12, 0), "580.1"),), {}, False, "no code for compute capability 12.0"),
        ((RTX,), {"tensorrt_rtx": "1.8.0"}, False, "1.8.0 is installed; it needs the same version"),
        ((RTX,), {"tensorrt_rtx": None}, False, "not installed"),
        ((Gpu("RTX 4090", (8, 9), "570.2"),), {"cuda13": ("tensorrt-rtx",)}, False, "needs 580 or later"),
        ((Gpu("RTX 4090", (8, 9), "570.2"),), {}, True, ""),
    ],
)
def test_verdict_on_plans_of_tensorrt_rtx(
    gpus: tuple[Gpu, ...],
    installed: dict[str, Any],
    runs: bool,
    reason: str,
    tmp_path: Path,
    inspect: Inspect,
    machine: Machines,
) -> None:
    path = plan_artifact(tmp_path)
    machine(*gpus, **installed)
    verdict = found(inspect, path)["verdict"]
    assert verdict["runs"] is runs
    assert reason in "; ".join(verdict["because"])
    assert ("yes" in inspect(path)[1]) is runs


def test_verdict_on_turing_and_on_plans_of_tensorrt(tmp_path: Path, inspect: Inspect, machine: Machines) -> None:
    machine(Gpu("T4", (7, 5), "580.1"))
    assert found(inspect, plan_artifact(tmp_path, plugins=False))["verdict"]["runs"] is False
    path = plan_artifact(tmp_path, "tensorrt", plugins=False)
    assert "yes, if it was built on a GPU of the same architecture" in " ".join(inspect(path)[1].split())
    machine(H200, tensorrt="10.15.0")
    assert "10.14.1 and 10.15.0 is installed" in found(inspect, path)["verdict"]["because"][0]


def test_this_machine_names_the_installed_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> list[Gpu]:
        raise compatibility.pynvml.NVMLError_GpuIsLost

    assert compatibility.this_machine().packages["onnxruntime"] is not None
    monkeypatch.setattr(compatibility, "find_gpus", lambda: [RTX])
    assert compatibility.this_machine().gpus == (RTX,)
    monkeypatch.setattr(compatibility, "find_gpus", refuse)
    assert compatibility.this_machine().gpus == ()


def plan_bytes(size: int, magic: bytes = b"vtrt", layout: int = 2) -> bytes:
    return struct.pack("<8sQQ4B", magic, layout, size, 1, 7, 1, 116) + bytes(28)


def test_plan_without_a_manifest(tmp_path: Path, inspect: Inspect, machine: Machines) -> None:
    path = tmp_path / "lone.plan"
    path.write_bytes(plan_bytes(56))
    content = found(inspect, path)
    assert "version 1.7.1.116" in content["details"]["header"]
    assert content["verdict"] == {"runs": False, "because": ["there is no GPU"]}
    machine(RTX)
    assert found(inspect, path)["verdict"] == {"runs": None, "because": ["no manifest beside it"]}
    machine(H200, tensorrt_rtx="1.8.0")
    because = found(inspect, path)["verdict"]["because"]
    assert ["1.8.0 is installed" in because[0], "H200 has 9.0" in because[1]] == [True, True]
    machine(RTX)
    path.write_bytes(plan_bytes(1000))
    content = found(inspect, path, status=1)
    assert content["damage"] == ["its header gives 1000 bytes and the file has 56"]
    assert content["verdict"] == {"runs": False, "because": ["it is damaged"]}
    for content_bytes in (b"something else", b"vtrt\0\0\0\0" + bytes(30), b"vtrt\0\0\0\0", b"ftrt\0\0\0\0"):
        path.write_bytes(content_bytes)
        content = found(inspect, path)
        assert "not known" in content["details"]["header"]
        assert content["verdict"] == {"runs": None, "because": ["no manifest beside it"]}
    path.write_bytes(b"")
    assert found(inspect, path, status=1)["verdict"] == {"runs": False, "because": ["it is damaged"]}


def test_plan_of_another_tensorrt(tmp_path: Path, inspect: Inspect, machine: Machines) -> None:
    path = tmp_path / "somebodys.bin"
    path.write_bytes(plan_bytes(0, b"ftrt", 0))
    content = found(inspect, path)
    assert content["kind"] == "plan"
    assert content["details"] == {"header": "of TensorRT, version 1.7.1.116"}
    assert content["verdict"] == {"runs": False, "because": ["there is no GPU"]}
    machine(H200, tensorrt=None)
    assert found(inspect, path)["verdict"] == {"runs": False, "because": ["tensorrt is not installed"]}
    machine(H200)
    verdict = found(inspect, path)["verdict"]
    assert verdict["runs"] is None
    assert "tensorrt 10.14.1 is installed" in verdict["because"][1]


def test_timing_cache_belongs_to_its_artifact(tmp_path: Path, inspect: Inspect) -> None:
    manifest = json.loads(plan_artifact(tmp_path).read_text())
    (tmp_path / "out.timing").write_bytes(b"timings")
    manifest["parts"][0]["timing_cache"] = {"file": "out.timing", "reused": False}
    save_manifest(tmp_path, manifest)
    assert found(inspect, tmp_path / "out.timing")["kind"] == "artifact"


def test_checkpoints_are_not_opened(tmp_path: Path, inspect: Inspect) -> None:
    path = tmp_path / "x.pt"
    torch.save({"model": {"a": torch.zeros(2)}}, path)
    whole = path.read_bytes()
    content = found(inspect, path)
    assert content["kind"] == "checkpoint"
    assert content["details"] == {"format": "of torch.save"}
    assert f"python -m export --ckpt {path}" in content["notes"][0]
    path.write_bytes(whole[:40])
    content = found(inspect, path, status=1)
    assert "truncated" in content["damage"][0]
    assert content["notes"] == []
    torch.save({"model": {}}, path, _use_new_zipfile_serialization=False)
    assert found(inspect, path)["details"] == {"format": "of torch.save before 1.6"}
    path.write_bytes(b"weights")
    assert found(inspect, path, status=1)["kind"] == "checkpoint"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"cos\nsystem\n(S'true'\ntR.")
    assert "is not loaded as it is: os.system" in found(inspect, path)["notes"][0]


def test_libraries(tmp_path: Path, inspect: Inspect, machine: Machines) -> None:
    path = save_library(tmp_path / "libmadtp_plugins.so")
    content = found(inspect, path)
    assert content["kind"] == "plugin library"
    assert content["details"]["compute capability"] == "8.0, 8.9"
    assert not content["notes"]
    machine(H200)
    assert found(inspect, path)["notes"] == ["it has no code for the GPUs of this machine"]
    path.write_bytes(b"\x7fELF of somebody else")
    assert found(inspect, path)["kind"] == "other"


def test_other_files(tmp_path: Path, inspect: Inspect) -> None:
    text, tokens = tmp_path / "notes.txt", tmp_path / "tokens.json"
    text.write_text("hello")
    tokens.write_text("[1, 2]")
    for path in (text, tokens):
        content = found(inspect, path)
        assert content["kind"] == "other"
        assert content["notes"][0].startswith("not an artifact, nor a file of one")
    text.write_bytes(b"")
    assert found(inspect, text, status=1)["damage"] == ["the file is empty"]


def test_markup_and_escapes_in_files_are_text(tmp_path: Path, inspect: Inspect) -> None:
    path = save_model(tmp_path / "[red]:x:.onnx")
    model = onnx.load(str(path))
    model.producer_name = "[bold]evil\x1b[31m\n:warning:"
    path.write_bytes(model.SerializeToString())
    table = inspect(path)[1]
    assert "[bold]evil\\x1b[31m\\n:warning:" in table
    assert "[red]:x:.onnx" in table


@pytest.mark.parametrize("name", ["missing.plan", "", "pipe", "n" * 300])
def test_what_cannot_be_read_exits_2(name: str, tmp_path: Path, inspect: Inspect) -> None:
    os.mkfifo(tmp_path / "pipe")
    status, out, err = inspect(tmp_path / name)
    assert status == 2
    assert out == ""
    assert "cannot read" in err


def test_a_library_is_shown_by_what_it_says_itself(tmp_path: Path, inspect: Inspect, machine: Machines) -> None:
    path = plan_artifact(tmp_path)
    machine(RTX)
    claims = {"version": "9.9", "sm": [70], "source_sha256": "d" * 64}
    edit_manifest(path, lambda manifest: manifest["plugins"]["library"].update(claims))
    content = found(inspect, path, status=1)
    library = content["manifest"]["library"]
    assert (library["version"], library["sm"], library["source_sha256"]) == (VERSION, [80, 89], "c" * 64)
    assert any("gives it another version and source_sha256 and sm" in text for text in content["damage"])
    (tmp_path / "out.plugins.so").write_bytes(b"\x7fELF a stranger's")
    digest = sha256(tmp_path / "out.plugins.so")
    edit_manifest(path, lambda manifest: manifest["plugins"]["library"].update(sha256=digest))
    content = found(inspect, path, status=1)
    assert content["manifest"]["library"]["version"] is None
    assert any("is no plugin library of this project" in text for text in content["damage"])
    assert content["verdict"]["runs"] is False
