"""`--layout packed`: what is exported, how it is checked, and what asks it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import export.build.validation
import export.runtime.execution
from export import Session
from export.artifact.reader import read_manifest
from export.validate.model_runner import ArtifactRunner
from madtp.tasks.requests import Outputs
from tests.helpers.checkpoints import TINY, save_checkpoint, state_of
from tests.helpers.command_line import Ran, run_export
from tests.helpers.defects import change_weight, rehash
from tests.helpers.op_library import real_library
from tests.helpers.samples import write_samples, write_vocabulary

SAMPLES = 8
RNG = np.random.default_rng(3)
IMAGES = [Image.fromarray(RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in range(6)]
TEXTS = ["the left image", "a digit", "both images show the same digit", "one", "left", "digit one image both"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model, samples, and what was exported from it; not to be changed."""
    folder = tmp_path_factory.mktemp("packed")
    save_checkpoint(folder / "tiny.pt", state_of(TINY))
    write_samples(folder / "samples")
    write_vocabulary(folder / "vocab.txt")
    real_library()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.build.validation, "LATENCY_SECONDS", 0.0)
        assert run_export(patch, *arguments(folder), "--batch", "1:4:8") == 0
    return folder


def arguments(folder: Path, name: str = "out.onnx") -> tuple[Any, ...]:
    return (
        *("--ckpt", folder / "tiny.pt", "--engine", folder / name, "--layout", "packed"),
        *("--samples", folder / "samples"),
    )


def test_the_manifest_says_that_requests_are_pruned_by_themselves(packed: Path) -> None:
    manifest = read_manifest(packed / "out.json")
    assert (manifest.layout, manifest.batching) == ("packed", "per-request")
    assert manifest.is_batch_invariant
    assert manifest.parts[0].custom_nodes.keys() == {
        "PackedAlignedAttention",
        "PackedTokenCompact",
        "VarlenAttention",
    }
    inputs = [tensor.name for tensor in manifest.parts[0].inputs]
    assert inputs == ["image0", "image1", "input_ids", "attention_mask", "temperature"]


def test_every_request_of_every_batch_was_compared_on_bodies_and_kernels(packed: Path) -> None:
    validation = read_manifest(packed / "out.json").validation
    assert [parity.requests for parity in validation.parity] == [2 * SAMPLES] * 2
    assert all(parity.layers_equal == parity.layers for parity in validation.parity)
    assert validation.kernels is not None
    assert (validation.kernels.status, validation.kernels.requests) == ("passed", 4 * SAMPLES)


def test_an_artifact_whose_answers_depend_on_the_batch_is_not_written(
    packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ArtifactRunner.run

    def leaning(self: ArtifactRunner, inputs: Any, temperature: float) -> Any:
        result = run(self, inputs, temperature)
        outputs: Outputs = dict(result.outputs)
        outputs["logits"] = outputs["logits"].clone()
        outputs["logits"][-1] += 0.01 * (len(outputs["logits"]) - 1)
        return type(result)(outputs, result.layers)

    monkeypatch.setattr(ArtifactRunner, "run", leaning)
    monkeypatch.setattr(export.build.validation, "LATENCY_SECONDS", 0.0)
    assert run_export(monkeypatch, *arguments(packed, "leaning.onnx")) == 1
    assert not (packed / "leaning.onnx").exists()
    assert "request 7: logits differ by" in capsys.readouterr().out


def test_a_session_answers_in_batches_what_it_answers_one_by_one(packed: Path) -> None:
    pairs = [(IMAGES[number], IMAGES[number - 1]) for number in range(6)]
    with Session(packed / "out.json", vocabulary=packed / "vocab.txt", threads=1) as session:
        usual = session.judge(pairs, TEXTS)
        single = session.judge(pairs, TEXTS, batch=1)
    assert [judgement.batch for judgement in usual] == [4, 4, 4, 4, 2, 2]
    assert [judgement.tokens for judgement in usual] == [judgement.tokens for judgement in single]
    for one, other in zip(usual, single, strict=True):
        assert one.logits == pytest.approx(other.logits, abs=1e-5)


@pytest.fixture
def validate(packed: Path, run_cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    monkeypatch.setattr(export.runtime.execution, "installed_library", lambda: None)

    def ran(name: str, *options: Any) -> Ran:
        given = ("--engine", packed / name, "--ckpt", packed / "tiny.pt", "--samples", packed / "samples")
        return run_cli("validate", *given, "--limit", 2, *options)

    return ran


def test_validation_says_that_nothing_depends_on_the_batch(validate: Callable[..., Ran], tmp_path: Path) -> None:
    result = validate("out.json", "--json", tmp_path / "v.json")
    assert result.status == 0, result
    assert "onnx gave in 8 batches what the request gives alone, but for 0 token counts and 0 answers" in result.out
    content = json.loads((tmp_path / "v.json").read_text())
    assert content["layout"] == "packed"
    assert {entry["contestant"] for entry in content["batch_mates"]} == {"torch", "onnx"}


def test_a_changed_weight_is_found_and_named(packed: Path, validate: Callable[..., Ran]) -> None:
    for name in ("out.onnx", "out.json", "out.vocab.txt"):
        if (packed / name).is_file():
            (packed / name.replace("out", "wrong")).write_bytes((packed / name).read_bytes())
    manifest = json.loads((packed / "wrong.json").read_text())
    manifest = json.loads(json.dumps(manifest).replace('"out.', '"wrong.'))
    (packed / "wrong.json").write_text(json.dumps(manifest))
    rehash(packed / "wrong.onnx", change_weight)
    result = validate("wrong.json")
    assert result.status == 1, result
    assert "first divergent node: " in result.out
