"""`python -m export validate`, end to end: verdicts, reports, what it refuses."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch
from PIL import Image

import export.engine.backends
from export.artifact.reader import manifest_path
from export.artifact.seal import OWN_HASH
from export.validate.contestants import RuntimeContestant
from madtp.files.inputs import sha256
from madtp.tasks.requests import Outputs
from tests.helpers.command_line import Ran
from tests.helpers.defects import change_weight, edit, rehash
from tests.helpers.manifests import manifest_json
from tests.helpers.samples import write_samples

Run = Callable[..., Ran]
FEW = ("--limit", 2)


@pytest.fixture
def validate(exported: tuple[Path, Path], run_cli: Run, quick: pytest.MonkeyPatch) -> Run:
    """Validate the tiny artifact on a few samples."""
    artifact, checkpoint = exported
    return lambda *arguments: run_cli("validate", "--engine", artifact, "--ckpt", checkpoint, *arguments)


def test_a_verdict_says_what_was_compared(validate: Run, tmp_path: Path) -> None:
    ran = validate(*FEW, "--json", tmp_path / "v.json")
    assert ran.status == 0, ran
    assert "validation passed" in ran.out
    assert "the images are the demo's" in ran.out
    assert "the words were only hashed to ids" in ran.out
    verdict = json.loads((tmp_path / "v.json").read_text())
    assert (verdict["passed"], verdict["status"]) == (True, "passed")
    assert verdict["samples"] | {"origin": ""} == {"kind": "demo", "origin": "", "count": 2, "words": "hashed"}
    assert [(pair["pair"], pair["temperature"]) for pair in verdict["pairs"]] == [("torch/onnx", 2), ("torch/onnx", 0)]
    assert {encoder: np.shape(rows) for encoder, rows in verdict["token_counts"].items()} == {
        "vision": (2, 1),
        "text": (2, 2),
    }


def test_a_verdict_has_the_deviations_of_every_pair(validate: Run, tmp_path: Path) -> None:
    validate(*FEW, "--json", tmp_path / "v.json")
    verdict = json.loads((tmp_path / "v.json").read_text())
    for pair in verdict["pairs"]:
        (logits,) = pair["outputs"]
        assert logits["error"] <= logits["allowed"] < 2e-4 * max(1, logits["worst"] * 1e9)
        assert logits["decided"] == logits["decisions"] == pair["requests"]
        assert pair["yardstick"] == pair["requests"]
        assert logits["cosine"] > 0.999999
    pruned, dense = verdict["pairs"]
    assert {layer["jaccard_min"] for layer in pruned["selection"]["layers"]} == {1.0}
    assert {layer["jaccard_min"] for layer in dense["selection"]["layers"]} == {None}
    assert {(entry["contestant"], entry["mates"]) for entry in verdict["batch_mates"]} == {
        (contestant, mates) for contestant in ("torch", "onnx") for mates in ("ordinary", "hostile")
    }
    assert any(entry["answers"] for entry in verdict["batch_mates"]), "hostile mates change answers, and it is said"


def test_a_verdict_in_junit_names_the_samples(validate: Run, tmp_path: Path) -> None:
    validate(*FEW, "--json", tmp_path / "v.json", "--junit", tmp_path / "v.xml")
    verdict = json.loads((tmp_path / "v.json").read_text())
    suites = ElementTree.parse(tmp_path / "v.xml").getroot()
    assert [suite.get("failures") for suite in suites] == ["0", "0"]
    facts = {entry.get("name"): entry.get("value") for entry in suites[0].iter("property")}
    assert facts == {f"samples.{name}": verdict["samples"][name] for name in ("kind", "origin", "words")}


def test_a_verdict_goes_into_the_manifest_and_nothing_else_changes(validate: Run, exported: tuple[Path, Path]) -> None:
    artifact, _ = exported
    before = manifest_json(manifest_path(artifact))
    validate(*FEW)
    after = manifest_json(manifest_path(artifact))
    assert after["validation"].pop("verdict")["pairs"][0]["layers_equal"] == 3
    assert after.pop(OWN_HASH) != before.pop(OWN_HASH)
    assert after == before


def test_a_changed_weight_fails_and_is_named(validate: Run, exported: tuple[Path, Path], tmp_path: Path) -> None:
    artifact, _ = exported
    rehash(artifact, change_weight)
    ran = validate(*FEW, "--repro", tmp_path / "repro")
    assert ran.status == 1, ran
    assert "logits differ by 1.00e-02" in ran.out
    assert "weight 'cls_head.2.bias' differs" in ran.out
    assert f"polygraphy run {tmp_path / 'repro' / 'node.onnx'}" in ran.out
    assert (tmp_path / "repro" / "inputs.json").is_file()
    assert "validation FAILED" in ran.out
    rows = [line for line in ran.out.splitlines() if "passed" in line or "FAILED" in line]
    assert ["FAILED" in row for row in rows] == [True, False, True, False, True], "logits failed, no tokens"


def test_a_failure_is_in_every_report(validate: Run, exported: tuple[Path, Path], tmp_path: Path) -> None:
    artifact, _ = exported
    rehash(artifact, change_weight)
    validate(*FEW, "--json", tmp_path / "v.json", "--junit", tmp_path / "v.xml")
    verdict = json.loads((tmp_path / "v.json").read_text())
    assert verdict["bisected"].startswith("first node that differs given identical inputs")
    failures = [case for case in ElementTree.parse(tmp_path / "v.xml").iter("testcase") if len(case)]
    assert len(failures) == 2  # both temperatures
    assert "logits differ" in failures[0][0].get("message", "")
    entry = manifest_json(manifest_path(artifact))["validation"]
    assert entry["artifact"] == entry["verdict"]["status"] == "failed"
    assert validate(*FEW, "--tolerance", "logits=0.02").status == 0
    assert manifest_json(manifest_path(artifact))["validation"]["artifact"] == "passed"


def test_other_kept_tokens_are_found(validate: Run, exported: tuple[Path, Path], tmp_path: Path) -> None:
    """The token space that scores and threshold come from."""
    artifact, _ = exported
    graph = onnx.load(str(artifact)).graph
    alignment = next(node for node in graph.node if node.op_type == "TokenCompact").input[5]
    name = next(node for node in graph.node if alignment in node.output).input[1]

    def shuffle(model: onnx.ModelProto) -> None:
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        values = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values[::-1]), name))

    rehash(artifact, shuffle)
    ran = validate("--json", tmp_path / "v.json")
    assert ran.status == 1, ran
    assert "differ first at" in ran.out
    assert f"weight '{name}' differs" in ran.out
    pruned, dense = json.loads((tmp_path / "v.json").read_text())["pairs"]
    assert dense["passed"]
    assert not pruned["passed"]
    assert pruned["selection"]["differences"]
    assert not all(token["explained"] for token in pruned["selection"]["listed"])
    assert min(layer["jaccard_min"] for layer in pruned["selection"]["layers"]) < 1


def test_an_artifact_that_gives_nan_fails(validate: Run, exported: tuple[Path, Path], tmp_path: Path) -> None:
    artifact, _ = exported
    rehash(artifact, lambda model: change_weight(model, by=float("nan")))
    ran = validate(*FEW, "--json", tmp_path / "v.json")
    assert ran.status == 1, ran
    assert "logits differ by nan" in ran.out
    assert json.loads((tmp_path / "v.json").read_text())["pairs"][0]["outputs"][0]["worst"] is None


def test_tokens_that_can_only_be_counted_are_said_to_be(
    validate: Run, exported: tuple[Path, Path], tmp_path: Path
) -> None:
    """Graph optimisers put function bodies in the place of the custom ops, and may rename values."""
    artifact, _ = exported
    model = onnx.inliner.inline_local_functions(onnx.load(str(artifact)))
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [name.replace("source_ids_", "values_") for name in names]
    onnx.save(model, str(artifact))
    rehash(artifact, lambda model: None)
    ran = validate(*FEW, "--json", tmp_path / "v.json")
    assert ran.status == 0, ran
    assert "tokens were only counted, not told apart" in ran.out
    names = [check["name"] for check in json.loads((tmp_path / "v.json").read_text())["checks"]]
    assert "temperature 2: outputs, answers, token counts" in names
    assert not [name for name in names if "kept tokens" in name]


def test_an_artifact_that_depends_on_its_slot_fails(validate: Run, quick: pytest.MonkeyPatch) -> None:
    """Torch's answer does not depend on the place in the batch; an artifact's that does is caught by its batch."""
    run = RuntimeContestant.answer

    def slotted(self: RuntimeContestant, inputs: Any, temperature: float) -> Any:
        answer = run(self, inputs, temperature)
        outputs: Outputs = dict(answer.outputs)
        outputs["logits"] = outputs["logits"] + 0.01 * torch.arange(len(outputs["logits"]))[:, None]
        return type(answer)(outputs, answer.layers)

    quick.setattr(RuntimeContestant, "answer", slotted)
    ran = validate("--limit", 1)
    assert ran.status == 1, ran
    assert "samples [0]" not in ran.out
    assert "slot 1 among ordinary mates: logits differ by 3.00e-02" in ran.out
    assert "no single node differs" in ran.out


def test_a_single_sample_is_enough_and_none_is_not(validate: Run, tmp_path: Path) -> None:
    folder = write_samples(tmp_path / "one", modes=("RGB",))
    ran = validate("--samples", folder)
    assert ran.status == 0, ran
    assert "1 samples of" in ran.out
    assert "hashed" not in ran.out
    (folder / "samples.json").write_text("[]")
    validate("--samples", folder).refused("lists 0 samples")


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """NLVR2 annotations of five sentences, their images, the tiny model's vocabulary."""
    folder = write_samples(tmp_path / "nlvr2", modes=("RGB",) * 5)
    entries = [
        {
            "sentence": entry["sentence"],
            "images": entry["images"],
            "label": entry["label"],
        }
        for entry in json.loads((folder / "samples.json").read_text())
    ]
    (folder / "nlvr_test.json").write_text(json.dumps(entries))
    (folder / "samples.json").unlink()
    return folder


def test_a_data_set(validate: Run, data_set: Path, tmp_path: Path) -> None:
    ran = validate("--data", data_set, "--limit", 3, "--json", tmp_path / "v.json")
    assert ran.status == 0, ran
    samples = json.loads((tmp_path / "v.json").read_text())["samples"]
    assert (samples["kind"], samples["count"], samples["words"]) == ("data set", 3, "read")
    assert samples["origin"] == f"3 of 5 items of '{data_set / 'nlvr_test.json'}' (test)"
    (data_set / "nlvr_test.json").write_text("[]")
    validate("--data", data_set).refused("nlvr_test.json")


def test_a_data_set_with_an_image_that_is_none(validate: Run, data_set: Path) -> None:
    path = data_set / json.loads((data_set / "nlvr_test.json").read_text())[0]["images"][0]
    path.write_bytes(b"no image")
    validate("--data", data_set).refused("cannot read the image", path.name)
    Image.new("RGB", (8, 8)).save(path)
    assert validate("--data", data_set, "--limit", 1).status == 0


REFUSED = {
    "an unknown output": (("--tolerance", "logit=1"), ("names the output 'logit'", "The model's are logits")),
    "no number": (("--tolerance", "logits=much"), ("--tolerance is 'logits=much'",)),
    "no samples": (("--limit", 0), ("--limit is 0",)),
    "a split of nothing": (("--split", "val"), ("--split is given without --data",)),
    "two sources": (("--data", "x", "--synthetic"), ("--data and --synthetic exclude each other",)),
    "no data set": (("--data", "missing"), ("there is no folder 'missing'",)),
    "a report in no folder": (("--json", "missing/v.json"), ("cannot write into 'missing'",)),
    "a report that is a folder": (("--junit", "/"), ("cannot write '/'",)),
}


@pytest.mark.parametrize(("arguments", "parts"), REFUSED.values(), ids=REFUSED)
def test_refused(
    arguments: tuple[object, ...], parts: tuple[str, ...], validate: Run, exported: tuple[Path, Path]
) -> None:
    before = {path: path.read_bytes() for path in exported[0].parent.iterdir()}
    validate(*arguments).refused(*parts)
    assert {path: path.read_bytes() for path in exported[0].parent.iterdir()} == before


def test_a_plan_that_cannot_be_run_is_not_run_in_every_report(
    validate: Run, exported: tuple[Path, Path], run_cli: Run, quick: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    quick.setattr(export.engine.backends, "find_gpus", list)
    artifact, checkpoint = exported
    plan = artifact.rename(artifact.with_suffix(".plan"))

    def as_plan(manifest: dict[str, Any]) -> None:
        manifest["artifact"] = manifest["parts"][0]["artifact"] = plan.name
        manifest["backend"]["name"] = "tensorrt"

    edit(plan, as_plan)
    reports = ("--json", tmp_path / "v.json", "--junit", tmp_path / "v.xml")
    ran = run_cli("validate", "--engine", plan, "--ckpt", checkpoint, *FEW, *reports)
    assert ran.status == 0, ran
    assert "the plan was not run" in ran.out
    assert "the plan: not run" in ran.out
    verdict = json.loads((tmp_path / "v.json").read_text())
    assert verdict["status"] == "not run"
    assert [check["group"] for check in verdict["checks"] if check["status"] == "not run"] == [
        "torch/plan",
        "onnx/plan",
    ]
    skipped = [
        case for case in ElementTree.parse(tmp_path / "v.xml").iter("testcase") if case.find("skipped") is not None
    ]
    assert len(skipped) == 2
    validation = manifest_json(manifest_path(plan))["validation"]
    assert (validation["artifact"], validation["validated"]) == ("not run", "onnx")
    edit(plan, lambda manifest: manifest["validation"].update(artifact="failed", validated="artifact"))
    ran = run_cli("validate", "--engine", plan, "--ckpt", checkpoint, *FEW)
    assert "keeps that the plan failed elsewhere" in ran.out
    assert manifest_json(manifest_path(plan))["validation"]["artifact"] == "failed"


def test_a_manifest_that_is_replaced_meanwhile_is_left_alone(
    validate: Run, exported: tuple[Path, Path], quick: pytest.MonkeyPatch
) -> None:
    artifact, _ = exported
    run = RuntimeContestant.answer

    def replacing(self: RuntimeContestant, inputs: Any, temperature: float) -> Any:
        edit(artifact, lambda manifest: manifest["parts"][0].update(bytes=1))
        return run(self, inputs, temperature)

    quick.setattr(RuntimeContestant, "answer", replacing)
    ran = validate(*FEW)
    assert ran.status == 0, ran
    assert "was replaced meanwhile" in ran.out
    assert "verdict" not in manifest_json(manifest_path(artifact))["validation"]


@pytest.mark.parametrize("task", ["vqa", "caption", "retrieval", "clip"])
def test_artifacts_of_several_parts_are_validated(
    task: str, task_artifacts: dict[str, Path], tmp_path: Path, run_cli: Run
) -> None:
    folder = shutil.copytree(task_artifacts[task], tmp_path / task)
    ran = run_cli("validate", "--engine", folder / "out.onnx", "--ckpt", folder / "tiny.pt", "--limit", 2)
    assert ran.status == 0, ran
    assert manifest_json(folder / "out.json")["validation"]["artifact"] == "passed"


def test_validate_writes_over_nothing_that_it_reads(exported: tuple[Path, Path], run_cli: Run, tmp_path: Path) -> None:
    artifact, checkpoint = exported
    before = {path: path.read_bytes() for path in artifact.parent.iterdir()}
    validate = ("validate", "--engine", artifact, "--ckpt", checkpoint, *FEW)
    for taken in (artifact, checkpoint, manifest_path(artifact)):
        run_cli(*validate, "--json", taken).refused(f"'{taken}' would overwrite '{taken}'", "This run reads it")
    run_cli(*validate, "--json", tmp_path / "v", "--junit", tmp_path / "v").refused("is named twice")
    run_cli(*validate, "--repro", checkpoint).refused("is no folder")
    run_cli("bench", artifact, "--save", artifact).refused("would overwrite")
    run_cli("report", artifact, "-o", manifest_path(artifact)).refused("would overwrite")
    assert {path: path.read_bytes() for path in artifact.parent.iterdir()} == before


def test_an_artifact_that_fails_while_it_runs_fails_and_the_node_is_named(
    validate: Run, exported: tuple[Path, Path], run_cli: Run, tmp_path: Path
) -> None:
    def shorten(model: onnx.ModelProto) -> None:
        name = "text_encoder.embeddings.word_embeddings.weight"
        (table,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        table.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(table)[:1], name))  # ids lie outside

    rehash(exported[0], shorten)
    ran = validate(*FEW, "--json", tmp_path / "v.json", "--junit", tmp_path / "v.xml")
    assert ran.status == 1, ran
    assert "it failed to run: ONNX Runtime cannot run" in ran.out
    assert "first node that differs given identical inputs: Gather" in ran.out
    assert "ONNX Runtime refuses it" in ran.out
    verdict = json.loads((tmp_path / "v.json").read_text())
    assert [pair["passed"] for pair in verdict["pairs"]] == [False, False]
    assert {entry["contestant"] for entry in verdict["batch_mates"]} == {"torch"}
    assert len(list(ElementTree.parse(tmp_path / "v.xml").iter("failure"))) == 2
    assert manifest_json(manifest_path(exported[0]))["validation"]["artifact"] == "failed"
    run_cli("bench", exported[0], "--no-profile").refused("ONNX Runtime cannot run")
    run_cli("report", exported[0], "-o", tmp_path / "page.html").refused("ONNX Runtime cannot run")


def test_an_artifact_without_an_output_of_its_manifest_fails(
    validate: Run, exported: tuple[Path, Path], run_cli: Run, tmp_path: Path
) -> None:
    def remove(model: onnx.ModelProto) -> None:
        (output,) = (value for value in model.graph.output if value.name == "text_token_counts")
        model.graph.output.remove(output)

    rehash(exported[0], remove)
    ran = validate(*FEW)
    assert ran.status == 1, ran
    assert "the artifact gives no output 'text_token_counts'" in ran.out
    run_cli("bench", exported[0], "--no-profile").refused("gives no output 'text_token_counts'")
    run_cli("report", exported[0], "-o", tmp_path / "page.html").refused("gives no output 'text_token_counts'")


def test_a_page_is_not_made_of_answers_that_are_not_finite(
    exported: tuple[Path, Path], run_cli: Run, tmp_path: Path
) -> None:
    rehash(exported[0], lambda model: change_weight(model, by=float("nan")))
    run_cli("report", exported[0], "-o", tmp_path / "page.html").refused("'logits' of part model is not finite")
    assert not (tmp_path / "page.html").exists()


def test_a_page_says_that_validation_failed(
    validate: Run, exported: tuple[Path, Path], run_cli: Run, tmp_path: Path
) -> None:
    rehash(exported[0], change_weight)
    assert validate(*FEW).status == 1
    assert run_cli("report", exported[0], "-o", tmp_path / "page.html", "--synthetic").status == 0
    page = (tmp_path / "page.html").read_text()
    assert re.search(r"VALIDATION FAILED on 20\d\d-\d\d-\d\d; first node that differs .*; torch/onnx", page)
    assert "weight &#39;cls_head.2.bias&#39; differs" in page
    assert validate(*FEW, "--tolerance", "logits=0.02").status == 0
    assert run_cli("report", exported[0], "-o", tmp_path / "page.html", "--synthetic").status == 0
    page = (tmp_path / "page.html").read_text()
    assert "FAILED" not in page
    assert "it agrees with torch on 2 of 16 of the demo" in page
    for row in ("logits: worst |difference|", "1.0e-02 (2.0e-02)", "torch/onnx, temperature 2", "3 of 3"):
        assert row in page


def test_a_result_that_cannot_be_printed_is_no_verdict(exported: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "export", "inspect", str(exported[0])]
    with open("/dev/full", "w") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ran.returncode == 2
    assert "the result could not be printed" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_vocabulary_beside_the_artifact_reads_the_samples(
    exported: tuple[Path, Path], run_cli: Run, quick: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    artifact, checkpoint = exported
    folder = write_samples(tmp_path / "samples", modes=("RGB",) * 2)
    vocabulary = (folder / "vocab.txt").rename(artifact.with_suffix(".vocab.txt"))
    command = ("validate", "--engine", artifact, "--ckpt", checkpoint, "--samples", folder)
    run_cli(*command).refused("there is no vocab.txt")
    entry = {"file": vocabulary.name, "sha256": sha256(vocabulary)}
    edit(artifact, lambda manifest: manifest["preprocessing"]["text"].update(vocabulary=entry))
    ran = run_cli(*command)
    assert ran.status == 0, ran
    assert "hashed" not in ran.out


def test_a_default_that_prunes_nothing_is_said_and_other_temperatures_can_be_compared(
    validate: Run, exported: tuple[Path, Path], tmp_path: Path
) -> None:
    edit(exported[0], lambda manifest: manifest.update(temperature=0))
    ran = validate(*FEW)
    assert ran.status == 0, ran
    assert "pruning was not compared" in ran.out
    ran = validate(*FEW, "--temperature", 0.5, "--temperature", 0.50000001, "--json", tmp_path / "v.json")
    assert ran.status == 0, ran
    assert "pruning was not compared" not in ran.out
    verdict = json.loads((tmp_path / "v.json").read_text())
    assert [pair["temperature"] for pair in verdict["pairs"]] == [0.50000001, 0.5, 0]
    assert len({check["name"] for check in verdict["checks"] if "/" in check["group"]}) == 3
    for wrong in ("nan", -1, "inf"):
        validate("--temperature", wrong).refused("--temperature is")


def test_control_characters_do_not_break_the_xml(
    exported: tuple[Path, Path], run_cli: Run, quick: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    artifact, checkpoint = exported
    odd = artifact.rename(artifact.with_name("a\x01\x1b.onnx"))
    manifest_path(artifact).rename(manifest_path(odd))

    def rename(manifest: dict[str, Any]) -> None:
        manifest["artifact"] = manifest["parts"][0]["artifact"] = odd.name

    edit(odd, rename)
    ran = run_cli("validate", "--engine", odd, "--ckpt", checkpoint, *FEW, "--junit", tmp_path / "v.xml")
    assert ran.status == 0, ran
    assert r"a\x01\x1b.onnx" in ElementTree.parse(tmp_path / "v.xml").getroot()[0].get("name", "")


def test_one_part_of_an_artifact_is_not_taken_for_it(task_artifacts: dict[str, Path], run_cli: Run) -> None:
    folder = task_artifacts["vqa"]
    part = folder / "out.encoder.onnx"
    for command in (("bench", part), ("report", part), ("validate", "--engine", part, "--ckpt", folder / "tiny.pt")):
        run_cli(*command).refused("'out.encoder' is one part of 'out.onnx'", f"Name '{folder / 'out.onnx'}'")


def test_numbers_of_the_manifest_that_cannot_be(validate: Run, exported: tuple[Path, Path]) -> None:
    for value in (0, -1, 1e300):
        edit(exported[0], lambda manifest, value=value: manifest["validation"]["gflops"].update(pruned=value))
        validate(*FEW).refused("is malformed", "gflops")
