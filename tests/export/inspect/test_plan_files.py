"""Plans, caches, checkpoints, libraries and other files, inspected without a manifest."""

import json
import os
import struct
import zipfile
from pathlib import Path

import onnx
import pytest
import torch

from madtp.files.inputs import sha256
from tests.helpers.artifact_files import VERSION, plan_artifact, save_library, save_manifest, save_model
from tests.helpers.inspections import H200, RTX, Inspect, Machines, found
from tests.helpers.manifests import edit_manifest


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
        assert "unknown" in content["details"]["header"]
        assert content["verdict"] == {"runs": None, "because": ["no manifest beside it"]}
    path.write_bytes(b"")
    assert found(inspect, path, status=1)["verdict"] == {"runs": False, "because": ["it is damaged"]}


def test_plan_of_another_tensorrt(tmp_path: Path, inspect: Inspect, machine: Machines) -> None:
    path = tmp_path / "somebodys.bin"
    path.write_bytes(plan_bytes(0, b"ftrt", 0))
    content = found(inspect, path)
    assert content["kind"] == "plan"
    assert content["details"] == {"header": "TensorRT, version 1.7.1.116"}
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
    assert content["details"] == {"format": "torch.save"}
    assert f"python -m export --ckpt {path}" in content["notes"][0]
    path.write_bytes(whole[:40])
    content = found(inspect, path, status=1)
    assert "truncated" in content["damage"][0]
    assert content["notes"] == []
    torch.save({"model": {}}, path, _use_new_zipfile_serialization=False)
    assert found(inspect, path)["details"] == {"format": "torch.save before 1.6"}
    path.write_bytes(b"weights")
    assert found(inspect, path, status=1)["kind"] == "checkpoint"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"cos\nsystem\n(S'true'\ntR.")
    assert "refuses to load it: os.system" in found(inspect, path)["notes"][0]


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
        assert content["notes"][0].startswith("neither an artifact nor a file of one")
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
    assert any("records a different version and source_sha256 and sm" in text for text in content["damage"])
    (tmp_path / "out.plugins.so").write_bytes(b"\x7fELF a stranger's")
    digest = sha256(tmp_path / "out.plugins.so")
    edit_manifest(path, lambda manifest: manifest["plugins"]["library"].update(sha256=digest))
    content = found(inspect, path, status=1)
    assert content["manifest"]["library"]["version"] is None
    assert any("is not a plugin library of this project" in text for text in content["damage"])
    assert content["verdict"]["runs"] is False
