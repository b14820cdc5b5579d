"""An export with --keep-margin: the artifact keeps more tokens, says so, and says what that costs."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import export.build.validation
import madtp
import madtp.data.samples
from madtp.models.caption import CaptionModel
from tests.helpers.checkpoints import write_task_checkpoint
from tests.helpers.command_line import Ran, run_export
from tests.helpers.manifests import manifest_json
from tests.helpers.samples import write_vocabulary

MARGIN, TAU = 0.1, 2.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioning checkpoint and its artifact with a margin."""
    folder = tmp_path_factory.mktemp("margin")
    write_vocabulary(folder / "vocab.txt")
    checkpoint = write_task_checkpoint("caption", folder / "tiny.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.build.validation, "LATENCY_SECONDS", 0.0)
        patch.setattr(madtp.data.samples, "MIN_SAMPLES", 2)
        arguments = (
            "--ckpt",
            checkpoint,
            "--engine",
            folder / "out.onnx",
            "--keep-margin",
            MARGIN,
            "--layout",
            "dynamic",
        )
        assert run_export(patch, *arguments) == 0
    return folder


def test_the_manifest_has_the_margin_and_its_cost(folder: Path) -> None:
    manifest = manifest_json(folder / "out.json")
    assert manifest["keep_margin"] == MARGIN
    gflops = manifest["validation"]["gflops"]
    assert gflops["without_margin"] < gflops["pruned"] < gflops["dense"]


def test_without_a_margin_the_manifest_has_none(task_artifacts: Any) -> None:
    manifest = manifest_json(task_artifacts["caption"] / "out.json")
    assert "keep_margin" not in manifest
    assert "without_margin" not in manifest["validation"]["gflops"]


def test_every_node_has_the_margin_and_the_version_that_knows_it(folder: Path) -> None:
    nodes = [node for node in onnx.load(folder / "out.encoder.onnx").graph.node if node.op_type == "TokenCompact"]
    assert nodes
    for node in nodes:
        given = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        assert given["keep_margin"] == np.float32(MARGIN)
        assert (given["plugin_version"], given["plugin_namespace"]) == (b"2", b"madtp.margin")


def test_the_artifact_keeps_what_torch_keeps_with_the_margin(folder: Path) -> None:
    session = onnxruntime.InferenceSession(folder / "out.encoder.onnx", providers=["CPUExecutionProvider"])
    model = madtp.load(folder / "tiny.pt")
    assert isinstance(model, CaptionModel)
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    feed = {"image": image.numpy(), "temperature": np.array(TAU, np.float32)}
    (artifact,) = session.run(["vision_token_counts"], feed)
    counts = {}
    for margin in (0.0, MARGIN):
        model.set_keep_margin(margin)
        with torch.no_grad():
            counts[margin] = model(image, TAU).vision_token_counts
    assert np.array_equal(artifact, counts[MARGIN].numpy())
    assert (counts[MARGIN] > counts[0.0]).all()


def test_validate_compares_with_the_margin(folder: Path, run_cli: Any) -> None:
    ran: Ran = run_cli("validate", "--engine", folder / "out.onnx", "--ckpt", folder / "tiny.pt", "--limit", 2)
    assert ran.status == 0, ran
    assert "validation passed" in ran.out


def test_inspect_shows_the_margin(folder: Path, run_cli: Any) -> None:
    ran: Ran = run_cli("inspect", folder / "out.json")
    assert re.search(rf"keep margin\s+│ {MARGIN} ", ran.out)
