"""`python -m export inspect`: what is shown of whole, damaged and foreign files, and what it says of this machine."""

import json
from pathlib import Path
from typing import Any

import pytest

from export.artifact.manifest import KEPT_FAILURES
from madtp.files.inputs import sha256
from tests.helpers.artifact_files import (
    plan_artifact,
    save_manifest,
    save_model,
)
from tests.helpers.inspections import RTX, Inspect, Machines, found
from tests.helpers.manifests import write_manifest


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
    assert any("not a complete ONNX" in text for text in content["damage"])
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
    lines = ("validated", "failed on 2026-02-03", "12 requests compared, 1 excluded", "the MatMul 'm'", failure)
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
    assert "not complete JSON" in found(inspect, vqa, status=1)["damage"][0]
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
