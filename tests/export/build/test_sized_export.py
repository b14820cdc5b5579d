"""Packed artifacts in which no size depends on data: buckets, what happens where one has not enough room, and plans."""

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import export.build.validation
import export.engine.builder as engine
from calibration.__main__ import cli as calibration
from export import Session
from export.artifact.manifest import OVERFLOW
from export.artifact.reader import read_manifest
from export.engine.backends import choose_backend
from export.errors import ManifestError
from export.runtime.artifact import Artifact
from export.runtime.buckets import BucketRunner, OverflowCount
from export.runtime.runner import RunnerOptions
from madtp.errors import InputError
from madtp.files.inputs import sha256
from tests.helpers.checkpoints import TINY, save_checkpoint, state_of
from tests.helpers.command_line import Ran, run_export
from tests.helpers.defects import edit
from tests.helpers.op_library import real_library
from tests.helpers.plugin_case import path_of
from tests.helpers.runtime_library import CEngine
from tests.helpers.samples import write_samples, write_vocabulary

RNG = np.random.default_rng(3)
IMAGES = [Image.fromarray(RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in range(8)]
TEXTS = ["the left image", "a digit", "both images show the same digit", "one", "left", "digit", "image", "a one"]
PAIRS = [(IMAGES[number], IMAGES[number - 1]) for number in range(8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, samples, capacities, and what was exported with them; not to be changed.

    Capacities of `short.json` are too small for most batches.
    """
    folder = tmp_path_factory.mktemp("sized")
    save_checkpoint(folder / "tiny.pt", state_of(TINY))
    write_samples(folder / "samples")
    write_vocabulary(folder / "vocab.txt")
    real_library()
    given = ["capacity", "--ckpt", folder / "tiny.pt", "--data", folder / "samples", "--batch", "1,4,8"]
    given += ["--text", 12, "-o", folder / "capacity.json"]
    ran = CliRunner().invoke(calibration, list(map(str, given)))
    assert ran.exit_code == 0, ran.output
    content = json.loads((folder / "capacity.json").read_text())
    for batch in content["batches"].values():
        whole = batch["buckets"][-1]
        rows = {encoder: [max(2, row // 3) for row in layers] for encoder, layers in whole["rows"].items()}
        batch["buckets"] = [{**whole, "rows": rows}, whole]
    (folder / "short.json").write_text(json.dumps(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.build.validation, "LATENCY_SECONDS", 0.0)
        for name, capacities in (("out.onnx", "capacity.json"), ("small.onnx", "short.json"), ("exact.onnx", None)):
            assert run_export(patch, *arguments(folder, name, capacities)) == 0
    return folder


def arguments(folder: Path, name: str, capacities: str | None = "capacity.json") -> tuple[Any, ...]:
    sized = () if capacities is None else ("--capacity", folder / capacities)
    return (
        *("--ckpt", folder / "tiny.pt", "--engine", folder / name, "--layout", "packed", "--samples"),
        *(folder / "samples", "--batch", "1:4:8", "--text", "2:8:12", *sized),
    )


def opened(folder: Path, name: str) -> Session:
    return Session(folder / name, vocabulary=folder / "vocab.txt", threads=1)


def test_buckets_stand_beside_what_has_room_for_everything(folder: Path) -> None:
    manifest = read_manifest(folder / "out.json")
    (part,) = manifest.parts
    assert manifest.is_sized
    assert part.outputs[-1].name == OVERFLOW
    assert manifest.capacities is not None
    assert (manifest.capacities.source, manifest.capacities.overflow) == ("file", 1e-3)
    assert part.buckets is not None
    assert [bucket.batch for bucket in part.buckets] == sorted(bucket.batch for bucket in part.buckets)
    assert part.buckets[-1].batch == 8
    for bucket in part.buckets:
        assert all(max(rows) <= bucket.whole[encoder] for encoder, rows in bucket.rows.items())
        assert bucket.profile["image0"].max[0] == bucket.batch
        assert bucket.external_data == part.external_data, "all engines share the weights"
        assert (folder / bucket.artifact).is_file()
        assert bucket.artifact in manifest.part_hashes
    assert [(bucket.least, bucket.batch) for bucket in part.buckets] == [(2, 4), (5, 8)], "one request keeps everything"
    assert [bucket.profile["image0"].min[0] for bucket in part.buckets] == [2, 5]


@pytest.mark.parametrize("batch", [1, 3, 4, 8])
def test_answers_are_those_of_exact_sizes_whatever_the_room(folder: Path, batch: int) -> None:
    with opened(folder, "exact.json") as session:
        expected = session.judge(PAIRS, TEXTS, batch=batch)
        assert session.overflows == OverflowCount()
    for name in ("out.json", "small.json"):
        with opened(folder, name) as session:
            found = session.judge(PAIRS, TEXTS, batch=batch)
            count = session.overflows
        assert [judgement.tokens for judgement in found] == [judgement.tokens for judgement in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.logits == pytest.approx(other.logits, abs=1e-5)
        if name == "small.json":
            assert count.overflows == count.calls > 0, "what did not fit is counted"
        else:
            assert count.overflows == 0


@pytest.mark.parametrize("name", ["out.json", "small.json"])
def test_the_engine_for_cxx_runs_the_same_buckets(folder: Path, name: str) -> None:
    artifact = Artifact.open(folder / name)
    runner = artifact.open_runners(RunnerOptions(threads=1, execution=artifact.execution("none")))["model"]
    assert isinstance(runner, BucketRunner)
    session = CEngine(folder / name, op_library="none").session()
    for batch, temperature in ((1, 0.5), (3, 0.5), (8, 0.5), (8, 0.0)):
        images = {name: RNG.random((batch, 3, 32, 32), np.float32) for name in ("image0", "image1")}
        words = {"input_ids": RNG.integers(1, 30, (batch, 9)), "attention_mask": np.ones((batch, 9), np.int64)}
        expected = runner.run({name: torch.from_numpy(array) for name, array in (images | words).items()}, temperature)
        found = session.infer("model", images | words, temperature, batch=batch)
        assert found.keys() == expected.keys()
        for output, array in found.items():
            np.testing.assert_array_equal(array, expected[output].numpy(), err_msg=output)
    assert session.statistics == (4, 4 + runner.count.overflows, runner.count.overflows, 0)
    assert (runner.count.overflows > 0) == (name == "small.json")


def test_the_dense_model_does_not_try_what_cannot_have_room(folder: Path) -> None:
    with opened(folder, "small.json") as session:
        judged = session.judge(PAIRS, TEXTS, batch=8, temperature=0.0)
        assert session.overflows == OverflowCount()
    assert {judgement.tokens["vision"][-1] for judgement in judged} == {judged[0].tokens["vision"][0]}


def test_a_batch_beyond_the_last_bucket_is_refused(folder: Path) -> None:
    with opened(folder, "out.json") as session, pytest.raises(InputError, match="batch"):
        session.judge(PAIRS, TEXTS, batch=9)


def test_a_request_that_is_not_a_number_leaves_its_mates_alone(folder: Path) -> None:
    """It keeps all tokens, so the batch does not fit, and runs again."""
    with opened(folder, "out.json") as session:
        inputs, _ = next(session._batches(PAIRS, [session.processor.ids(text) for text in TEXTS], 8))
        runner = session._artifact.open_runners()["model"]
        clean = runner.run(inputs, session.temperature)
        inputs["image0"] = inputs["image0"].clone()
        inputs["image0"][2] = float("nan")
        broken = runner.run(inputs, session.temperature)
    others = [row for row in range(8) if row != 2]
    assert broken["logits"][2].isnan().all()
    assert (broken["logits"][others] - clean["logits"][others]).abs().max() < 1e-5


def test_a_bucket_that_was_changed_is_refused(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("out.*"):
        (tmp_path / path.name).symlink_to(path)
    bucket = read_manifest(tmp_path / "out.json").parts[0].buckets[0].artifact  # type: ignore[index]
    model = onnx.load(str(folder / bucket), load_external_data=False)
    model.doc_string = "changed"
    (tmp_path / bucket).unlink()
    onnx.save(model, str(tmp_path / bucket))
    with pytest.raises(ManifestError, match=bucket):
        opened(tmp_path, "out.json")
    weight = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    next(entry for entry in weight.external_data if entry.key == "location").value = "elsewhere.data"
    onnx.save(model, str(tmp_path / bucket))
    changed = sha256(tmp_path / bucket)
    (tmp_path / "out.json").unlink()
    (tmp_path / "out.json").write_bytes((folder / "out.json").read_bytes())
    edit(tmp_path / "out.onnx", lambda content: content["parts"][0]["buckets"][0].update(sha256=changed))
    with pytest.raises(ManifestError, match="takes weights from 'elsewhere"):
        opened(tmp_path, "out.json")


def test_all_commands_take_such_an_artifact(folder: Path, run_cli: Callable[..., Ran], tmp_path: Path) -> None:
    shown = run_cli("inspect", folder / "small.json")
    assert shown.status == 0
    assert "small.b8.onnx" in shown.out
    assert "verified" in shown.out
    left, right = tmp_path / "0.png", tmp_path / "1.png"
    IMAGES[0].save(left)
    IMAGES[1].save(right)
    asked = ("--image", left, "--image", right, "--text", TEXTS[0], "--vocab", folder / "vocab.txt")
    answered = run_cli("run", folder / "small.json", *asked, "--json")
    assert answered.status == 0, answered
    assert json.loads(answered.out)["overflows"] == {"calls": 1, "overflows": 1}
    assert "1 of 1 calls did not fit a bucket" in run_cli("run", folder / "small.json", *asked).out
    given = ("--engine", folder / "small.json", "--ckpt", folder / "tiny.pt", "--samples", folder / "samples")
    validated = run_cli("validate", *given, "--limit", 3)
    assert validated.status == 0, validated
    assert "unavailable" not in validated.out, "kept tokens are compared too"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layout", "dynamic"), "--capacity does not apply to --layout dynamic"),
        (("--plugins", "none"), "--capacity and --plugins none exclude each other"),
        (("--keep-margin", "0.1"), "--capacity and --keep-margin exclude each other"),
        (("--temperature", "3"), "were measured at temperature"),
        (("--batch", "1:4:16"), "have none for batches of 16"),
        (("--text", "2:8:20"), "have no lossless bucket for batches of"),
        (("--capacity", "missing.json"), "missing.json"),
        (("--ckpt", "other.pt"), "are of another checkpoint"),
    ],
)
def test_capacities_that_do_not_fit_are_refused(
    folder: Path, run_cli: Callable[..., Ran], tmp_path: Path, options: tuple[str, str], message: str
) -> None:
    save_checkpoint(tmp_path / "other.pt", state_of(TINY), temperature=0.5)
    given = [tmp_path / value if value in ("other.pt", "missing.json") else value for value in options]
    result = run_cli("check", *arguments(folder, "new.onnx"), *given)
    assert result.status == 2
    assert message in result.err
    assert not (folder / "new.onnx").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--plugins", "none"), "--layout packed is not available for a .plan without plugins"),
        (("--tokens", "tokens.json"), "nothing is tuned with it"),
    ],
)
def test_plans_refuse_what_has_sizes_that_depend_on_data(
    folder: Path, run_cli: Callable[..., Ran], options: tuple[str, str], message: str
) -> None:
    result = run_cli("check", *arguments(folder, "new.plan", None), *options)
    assert result.status == 2
    assert message in result.err


LIST_LAYERS = """
import importlib, json, os, sys
import onnx
trt = importlib.import_module(sys.argv[1])
model = onnx.load(sys.argv[3])
for value in model.graph.input:
    for dim in value.type.tensor_type.shape.dim:
        if dim.HasField("dim_param"):
            dim.dim_value = {"batch": 5, "text": 9}[dim.dim_param]
logger = trt.Logger(trt.Logger.ERROR)
assert trt.get_plugin_registry().load_library(sys.argv[2]) is not None
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, logger)
assert parser.parse(model.SerializeToString(), sys.argv[3])
layers = [network.get_layer(index) for index in range(network.num_layers)]
print(json.dumps([
    [layer.name, layer.type.name, [list(layer.get_output(index).shape) for index in range(layer.num_outputs)]]
    for layer in layers
]), flush=True)
os._exit(0)  # TensorRT's teardown without a driver may abort
"""
SIZED_BY_DATA = {"NON_ZERO", "NMS", "LOOP_OUTPUT", "RECURRENCE", "ITERATOR", "TRIP_LIMIT", "CONDITION"}


@pytest.mark.parametrize("name", ["out.onnx", "out.b8.onnx"])
def test_no_layer_of_a_plan_s_network_has_a_size_that_depends_on_data(folder: Path, name: str, tmp_path: Path) -> None:
    """Given the sizes of the inputs, TensorRT knows those of all layers."""
    backend = choose_backend("auto", ".plan")
    command = [sys.executable, "-c", LIST_LAYERS, backend.module, path_of("host"), folder / name]
    environment = engine._worker_environment(backend, tmp_path)
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    layers = json.loads(ran.stdout)
    assert sum(kind == "PLUGIN_V3" for _, kind, _ in layers) == sum(
        read_manifest(folder / "out.json").parts[0].custom_nodes.values()
    )
    assert not [layer for layer in layers if layer[1] in SIZED_BY_DATA]
    assert not [layer for layer in layers if any(-1 in shape for shape in layer[2])]


def test_plans_measure_their_buckets_on_the_samples(
    folder: Path, run_cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.build.validation, "LATENCY_SECONDS", 0.0)
    given = arguments(folder, "measured.plan", None)
    result = run_cli(*given, "--plugins", path_of("host"), "--batch", "2:2:2")
    assert result.status == 0, result
    assert "buckets: measured on" in result.out
    manifest = read_manifest(folder / "measured.json")
    (part,) = manifest.parts
    assert manifest.layout == "packed"
    assert manifest.capacities is not None
    assert manifest.capacities.source == "measured"
    assert part.buckets is not None
    for bucket in part.buckets:
        assert bucket.artifact.endswith(".plan")
        assert (bucket.batch, bucket.profile["image0"].min[0]) == (2, 2)
        assert bucket.layers is not None
    assert part.tokens is None
    assert manifest.validation.validated == "onnx"


def test_an_artifact_that_is_closed_holds_no_engine_and_still_knows_what_did_not_fit(folder: Path) -> None:
    with opened(folder, "small.json") as session:
        session.judge(PAIRS, TEXTS, batch=8)
        held = weakref.ref(session._artifact._opened[0])
        session.close()
        gc.collect()
        assert held() is None
        assert session.overflows == OverflowCount(1, 1)
